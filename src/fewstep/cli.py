"""The command line: `fewstep check | sample | evaluate | report | clean`."""

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from contextlib import redirect_stdout
from datetime import timedelta
from math import ceil
from pathlib import Path

from fewstep.core.errors import UserError
from fewstep.core.quiet import quiet


def main(arguments: Sequence[str] | None = None) -> None:
    """Run one command. Exit status 1, and one readable message, when a UserError says what is wrong."""
    quiet()
    chosen = parser().parse_args(arguments)
    command: Callable[[argparse.Namespace], None] = chosen.command
    try:
        command(chosen)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(1) from None


def parser() -> argparse.ArgumentParser:
    """All commands and their options."""
    top = argparse.ArgumentParser(prog="fewstep", description="Few-step distillation of diffusion models.")
    commands = top.add_subparsers(required=True)

    add = commands.add_parser("check", help="validate params.yaml, inputs, versions and disk; print the plan")
    add.set_defaults(command=check)
    add.add_argument("--seconds", type=float, default=30, help="for measuring steps; 0: forecast no time")

    add = commands.add_parser("sample", help="draw pictures with any model of the chain")
    add.set_defaults(command=sample)
    add.add_argument("--model", type=Path, required=True, help="its folder, e.g. artifacts/models/one_step")
    add.add_argument("--prompt", action="append", required=True, help="repeat it for several rows")
    add.add_argument("--steps", type=int, help="default: the count the model was made for")
    add.add_argument("--seed", type=int, default=0)
    add.add_argument("--count", type=int, default=1, help="pictures per prompt, from consecutive noises")
    add.add_argument(
        "--guidance", type=float, help="of the teacher; default: sampling.guidance of params.yaml"
    )
    add.add_argument("--clip", type=float, help="bound of the estimated x_0, in latents' units")
    add.add_argument("--enlarge", type=int, default=1, help="whole-number factor of the written picture")
    add.add_argument("--out", type=Path, default=Path("sample.png"))

    add = commands.add_parser("evaluate", help="measure models and real images; print JSON objects")
    add.set_defaults(command=evaluate)
    add.add_argument("--model", action="append", required=True, metavar="NAME:STEPS", help="e.g. one_step:1")
    add.add_argument("--pictures", type=int, default=2000, help="how many of each")
    add.add_argument(
        "--seeds",
        type=int,
        default=1,
        help="draws of prompts, noise and real images; several give the spread",
    )

    add = commands.add_parser("report", help="write reports/index.html anew from what is there")
    add.set_defaults(command=report)

    add = commands.add_parser("clean", help="delete unfinished work in .checkpoints")
    add.set_defaults(command=clean)
    add.add_argument("stage", nargs="*", help="as DVC names it, e.g. train_teacher; default: all")
    return top


def check(chosen: argparse.Namespace) -> None:
    """`fewstep check`."""
    from rich.console import Console
    from rich.filesize import decimal
    from rich.table import Table

    from fewstep.chain import load_chain
    from fewstep.checks.checklist import check as check_chain
    from fewstep.checks.checklist import warnings
    from fewstep.checks.forecast import forecast, in_words
    from fewstep.checks.memory import advice, available, need
    from fewstep.checks.plan import plan, trainings
    from fewstep.checks.stopwatch import Stopwatch
    from fewstep.checks.teacher import design

    chain = load_chain()
    check_chain(chain)
    console, stages, denoiser, times = Console(), plan(chain), design(chain), {}
    if chosen.seconds > 0:
        times = forecast(chain, denoiser, Stopwatch(chosen.seconds))
        console.print(in_words(times))
    table = Table("stage", "samples", "steps", "disk", "time", title="the plan")
    for stage in stages:
        samples, steps = (f"{n:,}" if n else "" for n in (stage.samples, stage.steps))
        seconds = times.get(stage.name)
        took = "" if seconds is None else f"{timedelta(seconds=ceil(seconds))}"
        table.add_row(stage.name, samples, steps, decimal(stage.disk) if stage.disk else "", took)
    console.print(table)
    memory = available()
    if denoiser is None:
        console.print("memory of the trainings: unknown until the teacher is there")
    else:
        title = f"memory of the trainings, an estimate; there are {decimal(memory)}"
        columns = ("training", "parameters", "weights, optimizer, average", "a step at its peak", "sum")
        estimates, hints = Table(*columns, title=title), []
        for name, setup in trainings(chain).items():
            needed = need(denoiser, setup)
            known = "unknown" if needed.step is None else decimal(needed.step)
            estimates.add_row(
                name, f"{needed.parameters:,}", decimal(needed.state), known, decimal(needed.total)
            )
            if hint := advice(denoiser, setup, memory):
                hints.append(f"warning: {name} does not fit; what helps: {hint}")
        console.print(estimates, *hints, sep="\n", markup=False)
    for warning in warnings(chain):
        console.print(f"warning: {warning}", markup=False)
    console.print("params.yaml, inputs, versions and disk are in order")


def sample(chosen: argparse.Namespace) -> None:
    """`fewstep sample`."""
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


def evaluate(chosen: argparse.Namespace) -> None:
    """`fewstep evaluate`."""
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
        for record in evaluate_fully(wanted, chosen.pictures, chosen.seeds):
            print(json.dumps(rounded(record), indent=2), file=out, flush=True)


def report(chosen: argparse.Namespace) -> None:
    """`fewstep report`: the stage's own script, so that there is one way to make the page."""
    import runpy

    runpy.run_path("stages/report.py", run_name="__main__")


def clean(chosen: argparse.Namespace) -> None:
    """`fewstep clean`."""
    from rich.filesize import decimal

    from fewstep.artifacts.workspace import unfinished

    found = [work for stage in chosen.stage or [None] for work in unfinished(stage)]
    for work in found:
        line = f"deleted: {work}, {decimal(work.size)}"
        work.delete()
        print(line)
    if not found:
        print("nothing unfinished")


if __name__ == "__main__":
    main()
