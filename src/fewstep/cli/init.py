"""fewstep init: write the parameters of a published method for a model family."""

import argparse
from pathlib import Path

from fewstep.core.errors import UserError

RECIPES = Path("params")
"""Folder of the parameter files, METHOD_FAMILY.yaml, in the project."""


def options(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    parser.add_argument("family", help="sd15, sd21, sdxl, pixart, sd3, sd35, flux or sana")
    parser.add_argument("--method", default="instaflow", help="instaflow (default), flash or dmd2")
    parser.add_argument("--to", type=Path, default=Path("params.yaml"), help="file to write (params.yaml)")
    parser.add_argument("--force", action="store_true", help="replace the file if it is there")


def run(chosen: argparse.Namespace) -> None:
    """Copy the file. Raises UserError where there is none, or where a file would be lost."""
    recipe = RECIPES / f"{chosen.method}_{chosen.family}.yaml"
    if not recipe.is_file():
        known = ", ".join(sorted(file.stem for file in RECIPES.glob("*_*.yaml")))
        raise UserError(f"{recipe}: no such file; there are {known or 'none: run this in the clone'}")
    if chosen.to.exists() and not chosen.force:
        raise UserError(f"{chosen.to} is there already; add --force to replace it, or --to another.yaml")
    chosen.to.write_bytes(recipe.read_bytes())
    print(f"{chosen.to} written; set inputs.images, then run `fewstep check`")
