"""Start-up and step time of a compiled network: as a whole, block by block, and without compilation.

    python -m benchmarks.compiling [--size tiny] [--side 16] [--batch 2] [--steps 5] [--backend inductor]
    python -m benchmarks.compiling --pixart [--side 16] ...

Stable Diffusion 1.5's U-Net of a size of docs/compression.md, or PixArt-alpha's transformer, with random
weights. A step is a forward and a backward pass. Each way runs in a process of its own with an empty cache of
compiled code, and in a second one with the cache that the first has left, as the next stage does. Prints
JSON: the seconds of the first step in each, and the median of the later ones.
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
from diffusers import PixArtTransformer2DModel
from torch import nn

from fewstep.checks.stopwatch import synchronize
from fewstep.compression.unet import SIZES
from fewstep.core.compiling import compile_blocks
from fewstep.core.hardware import attention, device
from fewstep.core.precision import processor

WAYS = ("eager", "whole", "blocks")
CAPTION = 4096
"""Width of PixArt's text embeddings."""


def measured(way: str, chosen: argparse.Namespace) -> dict[str, float]:
    """The seconds of one way, in this process."""
    net = pixart(chosen.side) if chosen.pixart else unet(chosen.size, chosen.side)
    net = net.to(device())
    if way == "whole":
        net.compile(backend=chosen.backend)
    if way == "blocks":
        compile_blocks(net, chosen.backend)
    x = torch.randn(chosen.batch, 4, chosen.side, chosen.side, device=device())
    t = torch.full((chosen.batch,), 500.0, device=device())
    text = torch.randn(chosen.batch, 120, CAPTION if chosen.pixart else 768, device=device())
    more = {"added_cond_kwargs": {"resolution": None, "aspect_ratio": None}} if chosen.pixart else {}
    seconds = []
    for _ in range(1 + chosen.steps):
        synchronize()
        begun = time.perf_counter()
        with attention():
            net(x, encoder_hidden_states=text, timestep=t, **more).sample.square().mean().backward()
        synchronize()
        seconds.append(time.perf_counter() - begun)
        net.zero_grad()
    return {"first": round(seconds[0], 2), "later": round(median(seconds[1:]), 3)}


def pixart(side: int) -> nn.Module:
    """The transformer of PixArt-alpha for latents of this side."""
    net: nn.Module = PixArtTransformer2DModel(
        sample_size=side, caption_channels=CAPTION, use_additional_conditions=False
    )
    return net


def main() -> None:
    """Run every way."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--size", choices=SIZES, default="tiny")
    add("--pixart", action="store_true", help="the transformer instead of the U-Net")
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
            empty, filled = (in_process(way, cache) for _ in range(2))
        results[way] = {"empty cache": empty, "filled cache": filled}
    print(json.dumps(results))


def in_process(way: str, cache: str) -> dict[str, float]:
    """`measured` in a process of its own; cache: its folder of compiled code."""
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.compiling", *sys.argv[1:], "--way", way],
        env={**os.environ, "TORCHINDUCTOR_CACHE_DIR": cache},
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    seconds: dict[str, float] = json.loads(done.stdout)
    return seconds


if __name__ == "__main__":
    main()
