"""Runs DVC in a process group of its own, reads its output line by line, and stops the group by its guard."""

import os
import queue
import re
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from fewstep.core.stage import OUT_OF_MEMORY
from flows import guard
from flows.slots import Lease, Stopped

DVC = ("dvc", "--wait-for-lock")
NOTHING = Lease({}, ())
"""Lease of a command that needs no GPU or CPU slot."""
DIED = re.compile(r"exited with -\d+|exited with 1(2[89]|3\d|4\d)\b")
PASSING = ("Connection", "connection", "timed out", "Temporary failure", "Service Unavailable")


class StageFailed(Exception):
    """A stage failed; the message is the stage's error."""


class TransientFailure(StageFailed):
    """A failure that a retry may avoid: a killed process, an unreachable remote."""


class OutOfMemory(StageFailed):
    """The stage's device ran out of memory."""


def run_dvc(
    command: Sequence[str],
    name: str,
    root: Path,
    stop: threading.Event,
    hear: Callable[[str], None],
    lease: Lease = NOTHING,
    seconds: float | None = None,
    environment: Mapping[str, str] | None = None,
) -> bool:
    """Run a DVC command; it waits for DVC's lock. Returns whether the stage `name` ran in it.

    hear: called with every line of output. seconds: time limit. Raises StageFailed with the stage's error, or
    Stopped, after all its processes have ended.
    """
    ours = {"DVC_NO_ANALYTICS": "1", "PYTHONUNBUFFERED": "1", **lease.environment, **(environment or {})}
    heard, held = os.pipe()
    try:
        child = subprocess.Popen(
            [
                sys.executable,
                guard.__file__,
                str(heard),
                ",".join(map(str, lease.descriptors)),
                *DVC,
                *command,
            ],
            cwd=root,
            env={**os.environ, **ours},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            start_new_session=True,
            pass_fds=(heard, *lease.descriptors),
        )
    finally:
        os.close(heard)
    lines: queue.Queue[str | None] = queue.Queue()
    threading.Thread(target=drain, args=(child, lines), daemon=True).start()
    output: list[str] = []
    limit = time.monotonic() + seconds if seconds else None
    try:
        while (line := next_line(lines, stop, limit)) is not None:
            output.append(line)
            hear(line)
    finally:
        os.close(held)
        status = child.wait()
    if status != 0:
        raise failure(name, output, status)
    return f"Running stage '{name}':" in output


def drain(child: subprocess.Popen[str], lines: "queue.Queue[str | None]") -> None:
    """Put the child's lines into the queue, and None after the last one."""
    assert child.stdout is not None
    for line in child.stdout:
        lines.put(line.rstrip("\n"))
    lines.put(None)


def next_line(lines: "queue.Queue[str | None]", stop: threading.Event, limit: float | None) -> str | None:
    """The next line, or None at the end. Raises Stopped, or StageFailed after the time limit."""
    while True:
        if stop.is_set():
            raise Stopped
        if limit is not None and time.monotonic() > limit:
            raise StageFailed(
                "took longer than its `hours` in dvc.yaml allow; its state is kept, run it again to go on"
            )
        with suppress(queue.Empty):
            return lines.get(timeout=0.2)


def failure(name: str, output: Sequence[str], status: int = 1) -> StageFailed:
    """The exception for a failed stage, from its output: transient, out of memory, or any other failure."""
    errors = [line.removeprefix("error: ") for line in output if line.startswith("error: ")]
    died = not errors and (128 < status < 192 or any(DIED.search(line) for line in output))
    unreachable = any(word in line for line in output[-5:] for word in PASSING)
    kind: type[StageFailed] = TransientFailure if died or unreachable else StageFailed
    if any(OUT_OF_MEMORY in line for line in errors):
        kind = OutOfMemory
    return kind(f"{name}: " + "\n".join(errors or output[-15:]))
