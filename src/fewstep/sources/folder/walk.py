"""Walks a user's folder in a fixed order, following links, and visits each real folder once."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import NoReturn

from fewstep.core.errors import UserError


def walk(root: Path) -> Iterator[tuple[Path, list[str]]]:
    """Every folder below `root`, itself first, with the sorted names of all non-folders in it.

    Links to folders are followed, wherever they lead; a folder that was visited already, by whatever name,
    is not walked again, so that cyclic links end. Memory holds one folder's names and one entry per folder.

    Raises UserError naming a folder that cannot be listed.
    """
    met: set[tuple[int, int]] = set()
    is_new(root, met)
    for folder, below, names in os.walk(root, onerror=refuse, followlinks=True):
        below.sort()
        below[:] = [name for name in below if is_new(Path(folder, name), met)]
        yield Path(folder), sorted(names)


def is_new(folder: Path, met: set[tuple[int, int]]) -> bool:
    """Whether a folder of this device and inode was not visited yet; remembers it."""
    status = folder.stat()
    identity = status.st_dev, status.st_ino
    if identity in met:
        return False
    met.add(identity)
    return True


def refuse(error: OSError) -> NoReturn:
    """Raises UserError: a folder that cannot be listed would otherwise be skipped silently."""
    raise UserError(f"{error.filename}: cannot be listed ({error.strerror})")
