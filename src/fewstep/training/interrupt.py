"""SIGINT and SIGTERM as a flag, so that they never interrupt a step."""

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def interruptible() -> Iterator[Callable[[], bool]]:
    """Yields a function that reports whether a signal has arrived since."""
    arrived: list[int] = []
    numbers = (signal.SIGINT, signal.SIGTERM)
    before = [signal.signal(number, lambda n, frame: arrived.append(n)) for number in numbers]
    try:
        yield lambda: bool(arrived)
    finally:
        for number, handler in zip(numbers, before, strict=True):
            signal.signal(number, handler)
