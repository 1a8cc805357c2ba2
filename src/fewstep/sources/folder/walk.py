"""Walks a folder of a user's: in a fixed order, through links, each real folder once."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import NoReturn

from fewstep.core.errors import UserError


def walk(root: Path) -> Iterator[tuple[Path, list[str]]]:
    """Every folder below `root`, itself first, with the sorted names of what in it is no folder.

    Links to folders are followed, wherever they lead; a folder that was met already, by whatever name, is
    not walked again, so a circle ends. Memory holds one folder's names and one entry per folder.

    Raises UserError naming a folder that cannot be listed.
    """
    met: set[tuple[int, int]] = set()
    is_new(root, met)
    for folder, below, names in os.walk(root, onerror=refuse, followlinks=True):
        below.sort()
        below[:] = [name for name in below if is_new(Path(folder, name), met)]
        yield Path(folder), sorted(names)


def is_new(folder: Path, met: set[tuple[int, int]]) -> bool:
    """Whether no folder of this identity was met; remembers it."""
    found = folder.stat()
    identity = found.st_dev, found.st_ino
    if identity in met:
        return False
    met.add(identity)
    return True


def refuse(error: OSError) -> NoReturn:
    """A folder that cannot be listed would otherwise be skipped in silence."""
    raise UserError(f"{error.filename}: cannot be listed ({error.strerror})")
