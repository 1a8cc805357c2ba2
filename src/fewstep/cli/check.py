"""fewstep check: validate params.yaml, inputs, versions and disk; print the plan."""

import argparse
from datetime import timedelta
from math import ceil
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

    from rich.table import Table

    from fewstep.chain import Chain
    from fewstep.checks.memory import Need
    from fewstep.checks.tracing import Design


def options(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    parser.add_argument("--seconds", type=float, default=30, help="for measuring steps; 0: no time forecast")


def run(chosen: argparse.Namespace) -> None:
    """Check, then print time, stages, memory and warnings."""
    from rich.console import Console

    from fewstep.chain import load_chain
    from fewstep.checks.checklist import check as check_chain
    from fewstep.checks.checklist import warnings
    from fewstep.checks.forecast import forecast, in_words
    from fewstep.checks.stopwatch import Stopwatch
    from fewstep.checks.teacher import design

    chain = load_chain()
    check_chain(chain)
    console, denoiser, times = Console(), design(chain), {}
    if chosen.seconds > 0:
        times = forecast(chain, denoiser, Stopwatch(chosen.seconds))
        console.print(in_words(times))
    console.print(stages_table(chain, times))
    if denoiser is None:
        console.print("memory of the trainings: unknown until the teacher exists")
    else:
        table, hints = memory_table(chain, denoiser)
        console.print(table, *hints, sep="\n", markup=False)
    for warning in warnings(chain):
        console.print(f"warning: {warning}", markup=False)
    console.print("params.yaml, inputs, versions and disk are in order")


def stages_table(chain: "Chain", times: "Mapping[str, float | None]") -> "Table":
    """Each stage: samples, steps, disk, time."""
    from rich.filesize import decimal
    from rich.table import Table

    from fewstep.checks.plan import plan

    table = Table("stage", "samples", "steps", "disk", "time", title="the plan")
    for stage in plan(chain):
        samples, steps = (f"{n:,}" if n else "" for n in (stage.samples, stage.steps))
        seconds = times.get(stage.name)
        took = "" if seconds is None else f"{timedelta(seconds=ceil(seconds))}"
        table.add_row(stage.name, samples, steps, decimal(stage.disk) if stage.disk else "", took)
    return table


def memory_table(chain: "Chain", denoiser: "Design") -> "tuple[Table, list[str]]":
    """Each training's memory, and advice for those that do not fit."""
    from rich.filesize import decimal
    from rich.table import Table

    from fewstep.checks.designs import designs, networks
    from fewstep.checks.memory import advice, available, need
    from fewstep.checks.plan import trainings
    from fewstep.checks.small_decoders import decoder_needs

    memory = available()
    title = f"estimated memory of the trainings; available: {decimal(memory)}"
    columns = ("training", "parameters", "weights, optimizer, average", "a step at its peak", "saving", "sum")
    table, hints = Table(*columns, title=title), []
    models = chain.models()
    by_name = designs(chain, denoiser)
    for name, setup in trainings(chain).items():
        net, start, teacher = networks(chain, by_name, name)
        table.add_row(name, *memory_cells(need(net, setup, start, teacher)))
        if setup.decoding is None and name in models and models[name].config.image_loss is not None:
            hints.append(
                f"{name}: the estimate leaves out the images that its loss decodes, because the teacher's "
                "autoencoder or the network `features` is unknown"
            )
        if hint := advice(net, setup, memory, start, teacher):
            hints.append(f"warning: {name} does not fit; what helps: {hint}")
    for name, needed in decoder_needs(chain, by_name).items():
        table.add_row(name, *memory_cells(needed))
        if needed.total > memory:
            hints.append(f"warning: {name} does not fit; FEWSTEP_MICRO_BATCH helps")
    return table, hints


def memory_cells(needed: "Need") -> list[str]:
    """A training's parameters and bytes, as the columns of its row."""
    from rich.filesize import decimal

    step = "unknown" if needed.step is None else decimal(needed.step)
    copy = decimal(needed.copy) if needed.copy else ""
    total = decimal(needed.total_while_saving)
    return [f"{needed.parameters:,}", decimal(needed.state), step, copy, total]
