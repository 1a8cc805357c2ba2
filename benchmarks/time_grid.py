"""Distance of the teacher's few-step images from its many-step images, by solver and time grid.

    python benchmarks/time_grid.py [--images 256]

Run it in a folder with a finished chain. The reference is DDIM in 128 steps from the same noise. The distance
of an image is the root mean square difference over the elements of its latent, which have unit variance.
`rms`, `median`: of these distances. `other`: share of images with a distance above 0.3; most of them show
another composition.
"""

import argparse
from itertools import product

import torch
from torch import Tensor

from fewstep.backbones.model import open_model
from fewstep.backbones.registry import open_backbone
from fewstep.config.base import read
from fewstep.config.sampling import SamplingConfig
from fewstep.core.hardware import autocast, deterministic, device
from fewstep.core.paths import EVALUATION_SET, TEACHER
from fewstep.data.noise import noise_of
from fewstep.diffusion.solvers import Solver
from fewstep.evaluation.stored_set import load
from fewstep.sampling.draw import Sampler

REFERENCE = SamplingConfig(solver=Solver.DDIM, steps=128)
OTHER = 0.3
STEPS, POWERS = (8, 16), (1.0, 0.7, 0.5, 0.4)


def main() -> None:
    """Print a Markdown table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=256)
    count = parser.parse_args().images
    deterministic()
    backbone = open_backbone(TEACHER)
    model, prompts = open_model(TEACHER, backbone), load(EVALUATION_SET).prompts
    sampling = read(SamplingConfig, "sampling")
    noise = noise_of(prompts.noise, range(count), backbone.latent_shape).to(device())
    with torch.no_grad(), autocast():
        conditions = backbone.encode_prompts(prompts.prompts[:count])

    def latents(chosen: SamplingConfig) -> Tensor:
        sampler = Sampler(model, backbone, guided_like(chosen, sampling))
        return sampler.latents(conditions, noise, chosen.steps)

    reference = latents(REFERENCE)
    print("| solver | steps | time power | rms | median | other |\n|---|---|---|---|---|---|")
    for solver, steps, power in product(Solver, STEPS, POWERS):
        samples = latents(SamplingConfig(solver=solver, steps=steps, time_power=power))
        far = (samples - reference).flatten(1).square().mean(1).sqrt()
        rms, median, other = far.square().mean().sqrt(), far.median(), (far > OTHER).float().mean()
        print(
            f"| {solver} | {steps} | {power:g} | {rms:.3f} | {median:.3f} | {100 * other:.1f} % |", flush=True
        )


def guided_like(chosen: SamplingConfig, like: SamplingConfig) -> SamplingConfig:
    """`chosen` with the guidance of `like`."""
    kept = like.model_dump(include={"guidance", "guidance_interval", "negative_prompt"})
    return chosen.model_copy(update=kept)


if __name__ == "__main__":
    main()
