"""fewstep sample: draw images with any model of the chain."""

import argparse
from pathlib import Path


def options(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    add = parser.add_argument
    add("--model", type=Path, required=True, help="its folder, e.g. artifacts/models/one_step")
    add("--prompt", action="append", required=True, help="repeat it for several rows")
    add("--steps", type=int, help="default: the count the model was trained for")
    add("--seed", type=int, default=0)
    add("--count", type=int, default=1, help="images per prompt, from consecutive noise samples")
    add("--guidance", type=float, help="scale of the teacher; default: sampling.guidance of params.yaml")
    add("--clip", type=float, help="bound of the estimated x_0, in units of the latents")
    add("--enlarge", type=int, default=1, help="whole-number factor of the written image")
    add("--out", type=Path, default=Path("sample.png"))


def run(chosen: argparse.Namespace) -> None:
    """Write the grid and print where it is."""
    from fewstep.sampling.show import save_grid

    save_grid(
        chosen.model,
        chosen.prompt,
        chosen.out,
        steps=chosen.steps,
        seed=chosen.seed,
        count=chosen.count,
        guidance=chosen.guidance,
        clip=chosen.clip,
        enlarge=chosen.enlarge,
    )
    print(chosen.out)
