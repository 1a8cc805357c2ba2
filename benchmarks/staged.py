"""A stage of the chain, run in this process with its steps timed and its memory watched.

Private memory is what the process fills itself. Weight files are mapped into memory besides: their pages are
resident once they were read, but the kernel drops them where memory is short.
"""

import resource
import runpy
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Event, Thread
from typing import Any
from unittest.mock import patch

import psutil
from tools.imports import ROOT

from fewstep.training import loop

EVERY = 0.05
"""Seconds between two looks at the memory."""


def measured(stage: str, *arguments: str) -> dict[str, Any]:
    """Run `stages/STAGE.py`. Returns its seconds, those of each training step, and its memory in bytes.

    steps: (wall-clock, CPU) seconds. memory: the highest private memory by part of the stage. resident: the
    highest resident memory.
    """
    steps: list[tuple[float, float]] = []
    memory: dict[str, int] = {"of the process alone": private()}
    step, begun = loop.update, time.perf_counter()

    def with_clock(*args: Any) -> None:
        memory.setdefault("before the first step", private())
        start = time.perf_counter(), time.process_time()
        with peak(memory, "in the steps"):
            step(*args)
        steps.append((time.perf_counter() - start[0], time.process_time() - start[1]))

    command = [f"{stage}.py", *arguments]
    with (
        patch.object(loop, "update", with_clock),
        patch.object(sys, "argv", command),
        peak(memory, "in the stage"),
    ):
        runpy.run_path(str(ROOT / f"stages/{stage}.py"), run_name="__main__")
    resident = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    seconds = time.perf_counter() - begun
    return {"seconds": seconds, "steps": steps, "memory": memory, "resident": resident}


def private() -> int:
    """Resident bytes of this process that are no pages of files."""
    memory = psutil.Process().memory_info()
    return int(memory.rss - memory.shared)


@contextmanager
def peak(memory: dict[str, int], what: str) -> Iterator[None]:
    """Keeps the highest `private()` inside of the context in `memory[what]`."""
    ended = Event()

    def watch() -> None:
        while not ended.wait(EVERY):
            memory[what] = max(memory.get(what, 0), private())

    thread = Thread(target=watch)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def bytes_in(folder: Path) -> int:
    """Size of all files in a folder."""
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
