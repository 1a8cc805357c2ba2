"""Floating-point operations of each student's training: all networks, forward and backward passes.

    python benchmarks/compute.py [--params FILE]

Real training steps on invented data (as in `fewstep check`) are counted by torch's FLOP counter: matrix
products, convolutions and attention. Consecutive steps at three points of the training are averaged, because
a method may update a network only at some steps, and may change its loss. Two batch sizes are counted: what
does not grow with the batch is the optimizer's own (Muon's matrix products).
"""

import argparse
import tempfile
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table
from torch.utils.flop_counter import FlopCounterMode

from fewstep.chain import Chain, load_chain
from fewstep.checks.rehearsal import PHASES, rehearsal, training_step, uncompiled
from fewstep.checks.teacher import design
from fewstep.config.base import PARAMS
from fewstep.core.quiet import quiet

ROWS = (2, 4)
"""Samples of the counted steps."""
CONSECUTIVE = 6
"""Steps counted at each point of a training: a multiple of 2 and 3, the usual intervals of updates."""


@dataclass(frozen=True)
class Operations:
    """Floating-point operations of a training: per sample, per step besides, and in all."""

    each: float
    besides: float
    whole: float


def operations(chain: Chain) -> dict[str, Operations]:
    """Name of each model that is trained from another one -> its training's operations."""
    counted = {}
    with tempfile.TemporaryDirectory() as folder, uncompiled():
        here = rehearsal(chain, design(chain), Path(folder), 1 << 62)
        for name, made in chain.models().items():
            training = made.training
            if training is None:
                continue
            totals = []
            for rows in ROWS:
                step = training_step(here.student_training(name), training, Path(folder, f"{name}-{rows}"))
                with FlopCounterMode(display=False) as counter:
                    for _ in range(PHASES * CONSECUTIVE):
                        step(rows)
                totals.append(counter.get_total_flops() / (PHASES * CONSECUTIVE))
            each = (totals[1] - totals[0]) / (ROWS[1] - ROWS[0])
            besides = totals[0] - ROWS[0] * each
            counted[name] = Operations(each, besides, training.steps * (besides + training.batch_size * each))
    return counted


def main() -> None:
    """Count, and print a table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--params", type=Path, default=PARAMS)
    chosen = parser.parse_args()
    quiet()
    chain = load_chain(chosen.params)
    table = Table(
        "model", "method", "steps", "batch", "GFLOP a sample", "GFLOP a step besides", "TFLOP in all"
    )
    models = chain.models()
    for name, flops in operations(chain).items():
        training = models[name].config.training
        counts = (str(training.steps), str(training.batch_size))
        each, besides = f"{flops.each / 1e9:.2f}", f"{flops.besides / 1e9:.2f}"
        table.add_row(name, models[name].method, *counts, each, besides, f"{flops.whole / 1e12:.1f}")
    Console().print(table)


if __name__ == "__main__":
    main()
