"""Estimated and measured bytes of a training step: the default teacher's, or that of a student of a chain.

    python -m tests.peak [PARAMS STUDENT ROWS]

In a process of its own, whose memory at its highest nothing else has raised.
"""

import sys
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

from tools.imports import ROOT

from fewstep.chain import load_chain
from fewstep.checks.memory import need
from fewstep.checks.plan import trainings
from fewstep.checks.rehearsal import rehearsal, training_step
from fewstep.checks.teacher import design

NAME = "train_teacher, denoiser"


def main(params: str = str(ROOT / "params.yaml"), name: str = NAME, rows: str | None = None) -> None:
    """Measure and print. rows: of a step; None: the batch size of the training."""
    chain = load_chain(Path(params))
    assert chain.train_teacher is not None
    denoiser, models = design(chain), chain.models()
    training = models[name].training if name in models else chain.train_teacher.training
    assert denoiser is not None and training is not None
    count = int(rows or training.batch_size)
    expected = need(denoiser, replace(trainings(chain)[name], rows=count))
    with TemporaryDirectory() as folder:
        here = rehearsal(chain, denoiser, Path(folder), 10**10)
        method = here.student_training(name) if name in models else here.teacher_training()
        run = training_step(method, training, Path(folder))
        # What libraries take once, they take in a small step.
        run(2)
        before = status("VmRSS")
        Path("/proc/self/clear_refs").write_text("5")
        for _ in range(2):
            run(count)
        # Weights, average and the optimizer's state are there since the small step.
        print(expected.step, status("VmHWM") - before)


def status(name: str) -> int:
    """A line of this process's status, in bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(name))


if __name__ == "__main__":
    main(*sys.argv[1:])
