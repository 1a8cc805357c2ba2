"""Who runs where: a GPU, or a share of the CPUs, is leased by a lock on a file.

The child that computes inherits the lock, so the lease ends with whoever dies last, however it dies; nothing
must be swept. Leases are of the host: several workspaces share its GPUs.
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
"""Seconds between two looks."""


@dataclass(frozen=True)
class Lease:
    """What a stage may use. environment: that tells it so. descriptors: to be inherited by its process."""

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
    """Wait for `wanted` GPUs, or on a host without for one of FEWSTEP_SLOTS CPU slots, and hold them.

    Raises Stopped when `stop` is set meanwhile.
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
    """Lock `count` of the names' files, all or none, so that two who wait do not block each other."""
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
