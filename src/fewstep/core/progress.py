"""A progress bar on a terminal, one line every few per cent anywhere else."""

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

LINES = 20  # per run
UNKNOWN = 10_000  # units per line where the total is unknown


class Report(Protocol):
    """Called after every unit of work with the number done and a note to show beside it."""

    def __call__(self, done: int, note: str = "") -> None: ...


@contextmanager
def progress(name: str, total: int | None, done: int = 0) -> Iterator[Report]:
    """Show `name` advancing from `done` to `total` (None: unknown) with its rate and the time left."""
    if sys.stdout.isatty():
        with _bar(name, total, done) as report:
            yield report
    else:
        yield _lines(name, total, done)


@contextmanager
def _bar(name: str, total: int | None, done: int) -> Iterator[Report]:
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]}"),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
    )
    begun, start = time.monotonic(), done
    with Progress(*columns, console=Console(file=sys.stdout)) as bar:
        task = bar.add_task(name, total=total, completed=done, note="", rate="")

        def report(done: int, note: str = "") -> None:
            rate = (done - start) / max(time.monotonic() - begun, 1e-9)
            bar.update(task, completed=done, note=note, rate=f"{rate:.1f}/s")

        yield report


def _lines(name: str, total: int | None, done: int) -> Report:
    share = max(total // LINES, 1) if total else UNKNOWN
    begun, start, shown = time.monotonic(), done, done // share

    def report(done: int, note: str = "") -> None:
        nonlocal shown
        if done // share == shown and done != total:
            return
        shown = done // share
        rate = (done - start) / max(time.monotonic() - begun, 1e-9)
        place = f"{done}"
        if total:
            left = time.strftime("%H:%M:%S", time.gmtime((total - done) / rate)) if rate else "?"
            place = f"{100 * done // total:3d} %  {done}/{total}  {left} left"
        print(f"{name}: {place}  {rate:.1f}/s  {note}", flush=True)

    return report
