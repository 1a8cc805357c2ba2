"""fewstep evaluate: measure models and real images; print JSON objects."""

import argparse
import json
import sys
from contextlib import redirect_stdout

from fewstep.core.errors import UserError


def options(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    add = parser.add_argument
    add("--model", action="append", required=True, metavar="NAME:STEPS", help="e.g. one_step:1")
    add("--images", "--pictures", type=int, default=2000, help="per model and step count")
    seeds = "number of draws of prompts, noise and real images; several give the spread"
    add("--seeds", type=int, default=1, help=seeds)


def run(chosen: argparse.Namespace) -> None:
    """Print a JSON object per model and one of the floor: real images in place of generated ones.

    Raises UserError on a malformed --model.
    """
    from fewstep.evaluation.full import evaluate_fully
    from fewstep.evaluation.record import rounded

    wanted: dict[str, list[int]] = {}
    for item in chosen.model:
        name, _, steps = item.partition(":")
        if not steps.isdecimal() or int(steps) < 1:
            raise UserError(f"--model {item}: expected NAME:STEPS, e.g. one_step:1")
        wanted.setdefault(name, []).append(int(steps))
    if chosen.seeds < 1:
        raise UserError(f"--seeds {chosen.seeds}: expected a number, 1 or more")
    out = sys.stdout
    with redirect_stdout(sys.stderr):  # progress
        for record in evaluate_fully(wanted, chosen.images, chosen.seeds):
            print(json.dumps(rounded(record), indent=2), file=out, flush=True)
