"""Times a step of a network within a budget of seconds, and within the device's free memory."""

import time
from collections.abc import Callable
from contextlib import nullcontext
from statistics import median

import psutil
import torch

from fewstep.checks.live_bytes import LiveBytes
from fewstep.core.hardware import device

FEW = 2
"""Samples of the first, small trial: enough to estimate what more of them take."""
SHARE = 1 / 40
"""Share of the budget that one timed step may take."""
ROOM = 0.7
"""Share of the free memory that a measured step may fill."""
REPEATS = 3
WORTH = 1.5
"""Smallest factor by which the number of samples is increased for another trial."""


class Stopwatch:
    """Measures durations, including work queued on the device.

    budget: seconds for ten to fifteen kinds of steps together. clock, memory: functions that return the
    time in seconds and the free bytes.
    """

    def __init__(
        self,
        budget: float = 30.0,
        clock: Callable[[], float] = time.perf_counter,
        memory: Callable[[], int] | None = None,
    ) -> None:
        self.budget, self.longest = budget, budget * SHARE
        self.clock, self.memory = clock, memory or free_bytes

    def once(self, action: Callable[[], object]) -> float:
        """Seconds of one call."""
        synchronize()
        begun = self.clock()
        action()
        synchronize()
        return self.clock() - begun

    def several(self, action: Callable[[], object]) -> float:
        """Median of up to REPEATS calls, fewer when one takes long."""
        taken = [self.once(action)]
        while len(taken) < REPEATS and sum(taken) < self.longest:
            taken.append(self.once(action))
        return median(taken)

    def batch(self, run: Callable[[int], object], rows: int, fitting: int | None = None) -> float:
        """Seconds of `run(rows)`, a step on `rows` samples, after a warm-up.

        fitting: samples that are known to fit into memory; None: estimated from a small trial. Where `rows`
        samples would take too long or too much memory, only n samples are run, and the time is extrapolated
        from those of n and n // 2.
        """
        n = min(rows, FEW, fitting or FEW)
        with LiveBytes(1) if fitting is None else nullcontext() as live:
            first = self.once(lambda: run(n))
        if first > self.budget / 2:
            return first * rows / n
        if live is not None:
            each = max((size for _, size in live.history), default=0) / n
            fitting = int(ROOM * self.memory() / (each + 1))
        n = self.grown(run, n, min(rows, fitting or n))
        measured = self.several(lambda: run(n))
        if n == rows:
            return measured
        half = self.several(lambda: run(n // 2)) if n > 1 else 0.0
        return extrapolated(n, measured, half, rows)

    def grown(self, run: Callable[[int], object], n: int, most: int) -> int:
        """Increase the number of samples from n, to at most `most`, while a step is not too long.

        Each increase is at most fourfold: a step then takes at most four times as long, and hardly longer in
        a small network.
        """
        seconds = self.once(lambda: run(n))
        while n < most:
            more = min(most, 4 * n, int(n * self.longest / max(seconds, 1e-9)))
            if more < most and more < WORTH * n:
                break
            n = more
            seconds = self.once(lambda: run(n))  # noqa: B023
        return n


def extrapolated(n: int, seconds: float, half: float, rows: int) -> float:
    """Seconds at `rows` samples from those at n and at n // 2.

    Linear in the number of samples; at least the seconds at n, at most in proportion to the samples.
    """
    each = (seconds - half) / (n - n // 2)
    return min(max(seconds + each * (rows - n), seconds), seconds * rows / n)


def synchronize() -> None:
    """Wait for the device's queue."""
    if device().type != "cpu":
        torch.accelerator.synchronize()


def free_bytes() -> int:
    """Free bytes on the training device."""
    if device().type == "cuda":
        return torch.cuda.mem_get_info(device())[0]
    return int(psutil.virtual_memory().available)
