"""Waiting for what other processes do, on hosts of any speed."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

from tests.integration.project import PATIENCE

LINES = 40


class Running(Protocol):
    """A process that writes a log."""

    @property
    def log(self) -> Path:
        """Its output and errors."""

    def runs(self) -> bool:
        """Whether it has not ended."""


def until(true: Callable[[], object], *needed: Running, pause: float = 0.1) -> None:
    """Wait until `true()`.

    Fails, with the tails of their logs, as soon as a process that it needs has ended.
    """
    limit = time.monotonic() + PATIENCE
    while not true():
        for process in needed:
            assert process.runs(), f"{process.log.name}: ended too early\n{tails(*needed)}"
        assert time.monotonic() < limit, f"waited {PATIENCE:.0f} s in vain\n{tails(*needed)}"
        time.sleep(pause)


def tails(*processes: Running) -> str:
    """The last lines of each log, under its name."""
    return "\n".join(
        f"==> {process.log} <==\n" + "\n".join(process.log.read_text().splitlines()[-LINES:])
        for process in processes
    )
