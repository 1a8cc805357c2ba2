"""Estimated and measured bytes of a step of the default teacher's training.

    python -m tests.peak

In a process of its own, whose memory at its highest nothing else has raised.
"""

from pathlib import Path
from tempfile import TemporaryDirectory

from tools.imports import ROOT

from fewstep.chain import load_chain
from fewstep.checks.memory import need
from fewstep.checks.plan import trainings
from fewstep.checks.rehearsal import rehearsal, training_step
from fewstep.checks.teacher import design

NAME = "train_teacher, denoiser"


def main() -> None:
    """Measure and print."""
    chain = load_chain(ROOT / "params.yaml")
    assert chain.train_teacher is not None
    denoiser, training = design(chain), chain.train_teacher.training
    assert denoiser is not None
    expected = need(denoiser, trainings(chain)[NAME])
    with TemporaryDirectory() as folder:
        here = rehearsal(chain, denoiser, Path(folder), 10**10)
        run = training_step(here.teacher_training(), training, Path(folder))
        # What libraries take once, they take in a small step.
        run(2)
        before = status("VmRSS")
        Path("/proc/self/clear_refs").write_text("5")
        for _ in range(2):
            run(training.batch_size)
        # Weights, average and the optimizer's state are there since the small step.
        print(expected.step, status("VmHWM") - before)


def status(name: str) -> int:
    """A line of this process's status, in bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(name))


if __name__ == "__main__":
    main()
