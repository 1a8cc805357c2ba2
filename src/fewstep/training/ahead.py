"""Batches of a training, prepared in a thread while the device computes the steps before."""

from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import Any, Self

import torch

from fewstep.core.hardware import device, micro_batches, process
from fewstep.core.processes import local_slice
from fewstep.core.switches import number_of
from fewstep.training.method import Method, Rows

Parts = list[tuple[float, Any]]
"""This process's micro-batches of a step: (share of the batch's rows, what the method's `batch` returned)."""


def depth() -> int:
    """FEWSTEP_AHEAD, the number of batches that are prepared before their steps. Raises UserError."""
    return int(number_of("AHEAD", 1, 0, 64))


class Ahead:
    """Prepares batches before their steps: FEWSTEP_AHEAD of them (1); 0: each one at its step.

    A context manager. A batch depends on its positions only, so results are the same. An error is raised at
    the step of its batch.
    """

    def __init__(self, method: Method) -> None:
        """Raises UserError on an invalid switch."""
        self.method, self.count = method, depth()
        self._thread = ThreadPoolExecutor(1, "batches", use_the_device)
        self._waiting: deque[tuple[int, Future[Parts]]] = deque()

    def parts(self, step: int) -> Parts:
        """The batch of a step; then begins the next ones. Steps are asked for in order."""
        if self.count == 0:
            return parts_of(self.method, step, self.method.training.batch_size)
        self._begin(step)
        _, batch = self._waiting.popleft()
        parts = batch.result()
        self._begin(step + 1)
        return parts

    def _begin(self, first: int) -> None:
        """Have the batches of `count` steps from `first` on prepared, none beyond the last step."""
        begun = self._waiting[-1][0] + 1 if self._waiting else first
        training = self.method.training
        for step in range(begun, min(first + self.count, training.steps)):
            batch = self._thread.submit(parts_of, self.method, step, training.batch_size)
            self._waiting.append((step, batch))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._thread.shutdown(cancel_futures=True)


def use_the_device() -> None:
    """Make this process's GPU the thread's own default; a new thread begins with the first one."""
    if device().index is not None:
        torch.accelerator.set_device_index(device().index)


@torch.no_grad()
def parts_of(method: Method, step: int, batch_size: int) -> Parts:
    """This process's micro-batches of a step.

    Without autocast: leaving it clears a cache that all threads share, also the one in the middle of a step.
    """
    positions = range(step * batch_size, (step + 1) * batch_size)
    return [(share, method.batch(Rows(step, few))) for few, share in portions(positions)]


def portions(positions: Sequence[int]) -> Iterator[tuple[Sequence[int], float]]:
    """This process's micro-batches of a step, each with its share of the batch's rows.

    All processes yield equally many, because an FSDP-sharded network has to be called by all ranks. Where
    rows divide unevenly, a process that would have fewer yields its first row once more, with share 0.
    """
    mine = local_slice(positions)
    for few in micro_batches(mine):
        yield few, len(few) / len(positions)
    largest = positions[:: process().num_processes]
    missing = len([*micro_batches(largest)]) - len([*micro_batches(mine)])
    yield from [(mine[:1], 0.0)] * missing
