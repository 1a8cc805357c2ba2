"""Leases of GPUs and CPU slots, by locks on files.

The stage's processes inherit the lock, so a lease ends with the last of them, however that process ends, and
there are no stale leases to clean up. Leases are per host: several workspaces share its GPUs.
"""

import fcntl
import os
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from fewstep.core.switches import count_of

PATIENCE = 0.2
"""Seconds between two attempts to take a lease."""


@dataclass(frozen=True)
class Lease:
    """What a stage may use. environment: variables that restrict its process to that. descriptors: of the
    locks, which its process must inherit.
    """

    environment: dict[str, str]
    descriptors: tuple[int, ...]


class Stopped(Exception):
    """The flow is being stopped."""


def gpus() -> list[str]:
    """The host's GPUs that are visible here, as CUDA_VISIBLE_DEVICES names them."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return [name for name in visible.split(",") if name]
    try:
        listed = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return []
    return [str(number) for number in range(len(listed.stdout.strip().splitlines()))]


@contextmanager
def leased(wanted: int, stop: threading.Event) -> Iterator[Lease]:
    """Wait for `wanted` GPUs (on a host without GPUs: one of FEWSTEP_SLOTS CPU slots) and hold them.

    Raises Stopped when `stop` is set while it waits.
    """
    devices = gpus()
    count = min(wanted, len(devices))
    places = [f"cpu-{number}" for number in range(count_of("SLOTS", 1))]
    names = [f"gpu-{name}" for name in devices] if count else places
    folder = Path(tempfile.gettempdir()) / f"fewstep-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    with ExitStack() as held:
        taken = take(folder, names, max(count, 1), stop, held)
        chosen = ",".join(name.removeprefix("gpu-") for name, _ in taken)
        environment = {"CUDA_VISIBLE_DEVICES": chosen if count else ""} if devices else {}
        yield Lease(environment, tuple(file.fileno() for _, file in taken))


def take(
    folder: Path, names: list[str], count: int, stop: threading.Event, held: ExitStack
) -> list[tuple[str, IO[str]]]:
    """Lock `count` of the names' files, all or none, so that two waiting stages do not deadlock."""
    while not stop.is_set():
        with ExitStack() as attempt:
            taken: list[tuple[str, IO[str]]] = []
            for name in names:
                file = attempt.enter_context((folder / f"{name}.lock").open("w"))
                try:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    continue
                taken.append((name, file))
                if len(taken) == count:
                    held.push(attempt.pop_all())
                    return taken
        time.sleep(PATIENCE)
    raise Stopped
