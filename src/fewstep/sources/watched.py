"""What lies outside the project, as one hash per input: DVC then sees when it changes.

An input is a folder or a file of a user's (images, archives, a checkpoint). It is known by the names and
contents of its files. A file's content is hashed again only when its size, time or inode changed, so that a
look at an unchanged input reads no content.
"""

import hashlib
import os
import sqlite3
import stat
from collections.abc import Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from fewstep.artifacts.manifest import sha256
from fewstep.sources.folder.walk import walk


@dataclass(frozen=True)
class Seen:
    """An input as it is now. Hashed, so it names no place of this machine and no time.

    files, bytes: how many and how large together. sha256: of all names and contents. missing: what the
    parameters name and is not there; whoever opens it says so.
    """

    files: int
    bytes: int
    sha256: str
    missing: int


def look(inputs: Iterable[Path], known: Path) -> Seen:
    """The files and folders `inputs` together; `known`: a database in which hashes are kept between looks."""
    digest, files, size, missing = hashlib.sha256(), 0, 0, 0
    with closing(Hashes(known)) as hashes:
        for place in inputs:
            if not place.exists():
                missing += 1
                digest.update(b"missing\0")
                continue
            for name, file in files_of(place):
                content, length = hashes.of(file)
                digest.update(os.fsencode(name) + b"\0" + content.encode() + b"\n")
                files, size = files + 1, size + length
    return Seen(files, size, digest.hexdigest(), missing)


def files_of(place: Path) -> Iterator[tuple[str, str]]:
    """Each file's name within the input, and where it is; a folder is walked, links followed."""
    if place.is_file():
        yield place.name, str(place)
        return
    for folder, names in walk(place):
        # As text: a Path for each of a million files would take most of the time.
        below, here = folder.relative_to(place).as_posix(), str(folder)
        for name in names:
            yield f"{below}/{name}", f"{here}{os.sep}{name}"


class Hashes:
    """SHA-256 of files, kept in a SQLite database by path, size, time of change and inode."""

    def __init__(self, database: Path) -> None:
        database.parent.mkdir(parents=True, exist_ok=True)
        self._rows = sqlite3.connect(database)
        self._rows.execute(
            "CREATE TABLE IF NOT EXISTS files (path BLOB PRIMARY KEY, stamp TEXT, sha256 TEXT) WITHOUT ROWID"
        )

    def of(self, file: str) -> tuple[str, int]:
        """The file's hash and size in bytes; a link that leads nowhere and what is no file have neither."""
        try:
            found = os.stat(file)  # noqa: PTH116
        except OSError:
            return "broken link", 0
        if not stat.S_ISREG(found.st_mode):
            return "no file", 0
        path, stamp = (
            os.fsencode(os.path.abspath(file)),  # noqa: PTH100
            f"{found.st_size} {found.st_mtime_ns} {found.st_ino}",
        )
        row = self._rows.execute("SELECT stamp, sha256 FROM files WHERE path = ?", (path,)).fetchone()
        if row is not None and row[0] == stamp:
            return row[1], found.st_size
        content = sha256(Path(file))
        self._rows.execute("INSERT OR REPLACE INTO files VALUES (?, ?, ?)", (path, stamp, content))
        return content, found.st_size

    def close(self) -> None:
        """Keep what was found."""
        self._rows.commit()
        self._rows.close()
