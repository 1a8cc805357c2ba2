"""When a training's state is saved, and its writing in the background.

A save copies the state to host memory, which holds up the training, and writes the copy in a thread. Where a
training on a CPU leaves no room for a copy, it waits until its state is written. From the beginning of a save
to the beginning of the next one, at most a share of the time is spent saving: FEWSTEP_SAVE_SHARE.
"""

import sys
import time
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import Self

import psutil
from rich.filesize import decimal
from torch import Tensor

from fewstep.core.hardware import device
from fewstep.core.processes import is_main_process
from fewstep.core.switches import number_of
from fewstep.core.units import duration
from fewstep.training.checkpoint import save_state
from fewstep.training.sharding import is_sharded
from fewstep.training.state import State

SPEED = 400e6
"""Bytes per second that saving is assumed to reach until a save has been measured."""
ROOM = 0.8
"""Largest share of the free host memory that a copy of the state takes."""


def share() -> float:
    """FEWSTEP_SAVE_SHARE, the largest share of the time that saving takes. Raises UserError."""
    return number_of("SAVE_SHARE", 0.02, 0.001, 1)


def least() -> float:
    """FEWSTEP_SAVE_EVERY_SECONDS, the least interval between saves; 0: every step. Raises UserError."""
    return number_of("SAVE_EVERY_SECONDS", 30)


def interval(seconds: float) -> float:
    """Seconds from the beginning of a save that takes `seconds` to the beginning of the next one."""
    return max(least(), seconds / share()) if least() else 0.0


def in_place(state: State) -> dict[str, Tensor] | None:
    """The state itself, where it is in host memory and a copy of it has no room there; else None.

    Tensors that share memory, which no file of safetensors may hold, are copied all the same.
    """
    tensors = state.tensors()
    if device().type != "cpu" or any(is_sharded(tensor) for tensor in tensors.values()):
        return None
    if state.size <= ROOM * psutil.virtual_memory().available:
        return None
    return unshared({name: tensor.detach() for name, tensor in tensors.items()})


def unshared(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The same tensors; copies of those in whose memory there is more, or an earlier one."""
    alone, seen = {}, set()
    for name, tensor in tensors.items():
        storage = tensor.untyped_storage()
        shares = storage.nbytes() != tensor.nbytes or storage.data_ptr() in seen
        alone[name] = tensor.clone() if shares else tensor
        seen.add(storage.data_ptr())
    return alone


class Saver:
    """Saves a training's state now and then. Only the main process writes.

    A context manager: it does not end before the state that is being written is complete. An error of the
    writing thread, such as a full disk, is raised by the next call of `due`, `save` or `wait`.
    """

    def __init__(self, state: State) -> None:
        """Raises UserError on an invalid switch."""
        self.state, self.every_step, self.share = state, least() == 0, share()
        self.begun = time.monotonic()
        self.seconds: float | None = None
        """Duration of the last save, from copying the state to its final name; at first an estimate."""
        self.announced = ""
        self._thread = ThreadPoolExecutor(1, "save")
        self._writing: Future[float] | None = None

    def due(self, early: bool = False) -> bool:
        """Whether the main process is to save now; False in the others.

        early: save as soon as the share permits, before an operation that may take long.
        """
        if not is_main_process():
            return False
        if self._writing is not None and self._writing.done():
            self.wait()
        if self.seconds is None:
            # Not earlier: optimizers allocate their state in the first step.
            size = self.state.size
            self._announce(size / SPEED, f"estimated from a state of {decimal(size)}")
        assert self.seconds is not None
        since = time.monotonic() - self.begun
        pause = self.seconds / self.share if early else interval(self.seconds)
        return self.every_step or (self._writing is None and since >= pause)

    def save(self) -> None:
        """Copy the state and begin to write it; all processes call this together.

        Copying FSDP-sharded tensors gathers them. First waits for a state that is still being written.
        """
        self.wait()
        self.begun = time.monotonic()
        tensors = in_place(self.state)
        copies = self.state.snapshot() if tensors is None else tensors
        if is_main_process():
            self._writing = self._thread.submit(self._write, self.state.step, copies, self.begun)
        if self.every_step or tensors is not None:
            self.wait()

    def wait(self) -> None:
        """Return once no state is being written. Raises the writer's error."""
        if self._writing is not None:
            writing, self._writing = self._writing, None
            seconds = writing.result()
            self._announce(seconds, f"a state is saved in {duration(seconds)}")

    def _write(self, step: int, tensors: Mapping[str, Tensor], begun: float) -> float:
        """Write a state. Returns the seconds since `begun`."""
        save_state(self.state.folder, step, tensors)
        return time.monotonic() - begun

    def _announce(self, seconds: float, why: str) -> None:
        """Take the duration of a save, and print what a kill can lose from now on where that has changed."""
        self.seconds = seconds
        lost = "nothing but" if self.every_step else f"at most {duration(interval(seconds) + seconds)} and"
        if lost != self.announced:
            self.announced = lost
            print(f"{self.state.folder.name}: a kill loses {lost} a step ({why})", flush=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._thread.shutdown()
        if error is None:
            self.wait()
        elif self._writing is not None and (second := self._writing.exception()) is not None:
            print(f"warning: the last state was not saved: {second}", file=sys.stderr, flush=True)
