"""Triplets per second against a plain diffusers loop: same weights, solver, steps, guidance and batch.

    python -m benchmarks.triplets [--images 256] [--batch 64] [--rounds 3]

Both sides draw the same prompts from the chain's teacher, alternating, each after a warm-up; the plain loop
does what a script would: `pipe(prompts)`, images out. Prints one JSON object, with the share of the time that
the ops of our side would need at this device's roofline (benchmarks/roofline.py).
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable

import torch
from benchmarks.roofline import Roofline, bytes_per_second, operations_per_second
from diffusers import DPMSolverMultistepScheduler, StableDiffusionPipeline

from fewstep.backbones.model import open_model
from fewstep.backbones.prompts import encode_distinct, gather
from fewstep.backbones.registry import open_backbone
from fewstep.config.sampling import SamplingConfig
from fewstep.core.hardware import DTYPES, autocast, device, mixed_precision
from fewstep.core.paths import DATA, TEACHER
from fewstep.data.noise import noise_key, noise_of
from fewstep.data.shards import captions
from fewstep.evaluation.speed import machine
from fewstep.sampling.draw import Sampler

STEPS, GUIDANCE = 8, 2.0


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--images", "--pictures", type=int, default=256)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=3)
    chosen = parser.parse_args()
    source = captions(DATA, "train")
    prompts = [next(source) for _ in range(chosen.images)]

    backbone = open_backbone(TEACHER)
    sampler = Sampler(open_model(TEACHER, backbone), backbone, SamplingConfig(guidance=GUIDANCE))
    pipeline = StableDiffusionPipeline.from_pretrained(TEACHER, safety_checker=None).to(device())
    pipeline.scheduler = DPMSolverMultistepScheduler.from_config(
        pipeline.scheduler.config, timestep_spacing="trailing"
    )
    pipeline.set_progress_bar_config(disable=True)

    def ours() -> None:
        conditions, row = encode_distinct(backbone, prompts)
        for start in range(0, len(prompts), chosen.batch):
            rows = row[start : start + chosen.batch]
            noise = noise_of(noise_key(0), range(start, start + len(rows)), backbone.latent_shape)
            sampler.latents(gather(conditions, rows), noise.to(device()), STEPS).cpu()

    def plain() -> None:
        for start in range(0, len(prompts), chosen.batch):
            with autocast():
                pipeline(
                    prompts[start : start + chosen.batch], num_inference_steps=STEPS, guidance_scale=GUIDANCE
                )

    def plain_without_images() -> None:
        for start in range(0, len(prompts), chosen.batch):
            with autocast():
                pipeline(
                    prompts[start : start + chosen.batch],
                    num_inference_steps=STEPS,
                    guidance_scale=GUIDANCE,
                    output_type="latent",
                )

    sides = {"ours": ours, "plain": plain, "plain, latents only": plain_without_images}
    seconds = alternate(sides, chosen.rounds)
    roofline = Roofline()
    dtypes = {torch.float32, DTYPES[mixed_precision()] or torch.float32}
    rates = {str(dtype): operations_per_second(dtype) / 1e9 for dtype in dtypes}
    copied = bytes_per_second() / 1e9
    with roofline:
        ours()
    print(
        json.dumps(
            {
                "machine": machine(device()),
                "precision": mixed_precision(),
                "batch": chosen.batch,
                "steps": STEPS,
                "triplets_per_second": {name: len(prompts) / s for name, s in seconds.items()},
                "roofline": {
                    "share": roofline.seconds / seconds["ours"],
                    "share of matrix products and convolutions": roofline.matrix_seconds / seconds["ours"],
                    "GFLOP_per_second": rates,
                    "GB_per_second": copied,
                },
                "ratio": seconds["plain"] / seconds["ours"],
                "ratio, latents only": seconds["plain, latents only"] / seconds["ours"],
            },
            indent=2,
        )
    )


def alternate(sides: dict[str, Callable[[], None]], rounds: int) -> dict[str, float]:
    """Median seconds of each side, run in turn so that changes of the machine's load affect all of them."""
    times: dict[str, list[float]] = {name: [] for name in sides}
    for number in range(rounds + 1):
        for name, run in sides.items():
            start = time.perf_counter()
            run()
            if device().type == "cuda":
                torch.cuda.synchronize()
            if number:
                times[name].append(time.perf_counter() - start)
    return {name: statistics.median(values) for name, values in times.items()}


if __name__ == "__main__":
    main()
