"""Units: the parts into which a source is divided, each read by itself, in any process."""

import hashlib
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, TypeVar

T = TypeVar("T")
RUN = 256
"""Entries per unit where the source has no parts of its own; a killed process loses at most so many."""


@dataclass(frozen=True)
class Unit:
    """Consecutive entries of a source.

    name: for errors and logs. content: what the source's `read` needs to read it, of plain values and
    dataclasses. files: paths of the files that it reads. samples: number of its entries that are not skipped;
    None where it must be read to be counted.
    """

    name: str
    content: Any
    files: tuple[str, ...] = ()
    samples: int | None = None

    def stamp(self) -> str:
        """Hash of the unit, with size, modification time and inode of its files, as `watched` compares them.

        It changes when the unit must be read again. Nothing of it is part of an artifact.
        """
        digest = hashlib.sha256(f"{self.name}\0{self.content!r}".encode("utf-8", "surrogateescape"))
        for file in self.files:
            try:
                status = os.stat(file)  # noqa: PTH116
                digest.update(f"\n{status.st_size} {status.st_mtime_ns} {status.st_ino}".encode())
            except OSError as error:
                digest.update(f"\n{error.errno}".encode())
        return digest.hexdigest()


def runs(entries: Iterable[T], size: int = RUN) -> Iterator[list[T]]:
    """Consecutive lists of at most `size` entries; only one of them is in memory."""
    run: list[T] = []
    for entry in entries:
        run.append(entry)
        if len(run) == size:
            yield run
            run = []
    if run:
        yield run
