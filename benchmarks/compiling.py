"""Start-up and step time of a compiled U-Net: as a whole, block by block, and without compilation.

    python -m benchmarks.compiling [--size tiny] [--side 16] [--batch 2] [--steps 5] [--backend inductor]

Stable Diffusion 1.5's geometry with random weights, of a size of docs/compression.md. A step is a forward and
a backward pass. Each way runs in a process of its own with an empty cache of compiled code. Prints JSON: the
seconds of the first step, and the median of the later ones.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from statistics import median

import torch
from benchmarks.sd15 import unet

from fewstep.checks.stopwatch import synchronize
from fewstep.compression.unet import SIZES
from fewstep.core.compiling import compile_blocks
from fewstep.core.hardware import attention, device
from fewstep.core.precision import processor

WAYS = ("eager", "whole", "blocks")


def measured(way: str, chosen: argparse.Namespace) -> dict[str, float]:
    """The seconds of one way, in this process."""
    net = unet(chosen.size, chosen.side).to(device())
    if way == "whole":
        net.compile(backend=chosen.backend)
    if way == "blocks":
        compile_blocks(net, chosen.backend)
    x = torch.randn(chosen.batch, 4, chosen.side, chosen.side, device=device())
    t, text = torch.full((chosen.batch,), 500.0), torch.randn(chosen.batch, 77, 768)
    seconds = []
    for _ in range(1 + chosen.steps):
        synchronize()
        begun = time.perf_counter()
        with attention():
            net(x, t.to(device()), text.to(device())).sample.square().mean().backward()
        synchronize()
        seconds.append(time.perf_counter() - begun)
        net.zero_grad()
    return {"first": round(seconds[0], 2), "later": round(median(seconds[1:]), 3)}


def main() -> None:
    """Run every way."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--size", choices=SIZES, default="tiny")
    add("--side", type=int, default=16, help="of the latents")
    add("--batch", type=int, default=2)
    add("--steps", type=int, default=5)
    add("--backend", default="inductor")
    add("--way", choices=WAYS, help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.way:
        print(json.dumps(measured(chosen.way, chosen)))
        return
    results: dict[str, object] = {"cpu": processor(), "threads": torch.get_num_threads()}
    for way in WAYS:
        with tempfile.TemporaryDirectory() as cache:
            done = subprocess.run(
                [sys.executable, "-m", "benchmarks.compiling", *sys.argv[1:], "--way", way],
                env={**os.environ, "TORCHINDUCTOR_CACHE_DIR": cache},
                stdout=subprocess.PIPE,
                text=True,
                check=True,
            )
        results[way] = json.loads(done.stdout)
    print(json.dumps(results))


if __name__ == "__main__":
    main()
