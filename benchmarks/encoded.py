"""Training steps per second with encodings from `encode_data` against encoding in each step.

    python benchmarks/encoded.py [--batch 128] [--steps 10] [--rounds 3]

One step is that of any method on real data: add noise to latents, predict, backward pass, optimizer step. The
other side first encodes the step's images and captions with the same teacher. Both sides alternate in one
process. Prints JSON.
"""

import argparse
import json
import tempfile
from copy import deepcopy
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.functional import mse_loss
from triplets import alternate  # type: ignore[import-not-found]

from fewstep.artifacts.workspace import Workspace
from fewstep.backbones.registry import open_backbone
from fewstep.core.hardware import autocast, device, mixed_precision
from fewstep.core.keyed import Key
from fewstep.core.paths import DATA, TEACHER
from fewstep.data.encoded import open_encoded
from fewstep.data.pixels import image_batch
from fewstep.data.prompted import collate_rows
from fewstep.data.shards import open_images
from fewstep.diffusion.denoiser import Conditions, add_noise
from fewstep.evaluation.speed import machine
from fewstep.sampling.encode import encode_split

ORDER = Key(0, "benchmark")


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--rounds", type=int, default=3)
    chosen = parser.parse_args()
    backbone = open_backbone(TEACHER)
    net = deepcopy(backbone.net).requires_grad_(True).train()
    network, schedule = backbone.network(net), backbone.schedule
    optimizer = torch.optim.AdamW(net.parameters(), lr=1e-5)
    images = open_images(DATA, "train", ORDER)

    def step(x_0: Tensor, conditions: Conditions) -> None:
        t = torch.rand(len(x_0), device=x_0.device)
        eps = torch.randn_like(x_0)
        with autocast():
            raw = network(
                add_noise(schedule, x_0, eps, t),
                schedule.network_time(t).float(),
                conditions,
            )
            loss = mse_loss(raw.float(), eps)
        torch.autograd.backward(loss)
        optimizer.step()
        optimizer.zero_grad()

    with tempfile.TemporaryDirectory(dir=".") as folder:
        out, inputs = Path(folder, "encoded"), {"data": DATA, "teacher": TEACHER}
        work = Workspace("encode_data@benchmark", {}, inputs)
        encode_split(out, backbone, DATA, "train", "float32", work, inputs)
        work.finish()
        encoded = open_encoded(out, ORDER)

        def cached() -> None:
            for number in range(chosen.steps):
                rows = encoded.rows(range(number * chosen.batch, (number + 1) * chosen.batch))
                step(*collate_rows(rows, device()))

        def each_step() -> None:
            for number in range(chosen.steps):
                rows = images.rows(range(number * chosen.batch, (number + 1) * chosen.batch))
                with torch.no_grad(), autocast():
                    x_0 = backbone.encode(image_batch(rows).to(device()))
                    conditions = backbone.encode_prompts([row.caption for row in rows])
                step(x_0, conditions)

        seconds = alternate({"cached": cached, "each step": each_step}, chosen.rounds)
    print(
        json.dumps(
            {
                "machine": machine(device()),
                "precision": mixed_precision(),
                "batch": chosen.batch,
                "steps_per_second": {name: chosen.steps / s for name, s in seconds.items()},
                "ratio": seconds["each step"] / seconds["cached"],
            },
            indent=2,
        )
    )


if __name__ == "__main__":
    main()
