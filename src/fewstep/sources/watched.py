"""Hashes the inputs outside the project, so that DVC detects when one changes.

An input is a user's folder or file (images, archives, a checkpoint). Its hash covers the names and contents
of its files. A file's content is hashed again only when its size, modification time or inode changed, so that
checking an unchanged input reads no content.
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
    """The current state of an input. It is hashed itself, so it holds no path of this machine and no time.

    files, bytes: number of files and their total size. sha256: of all names and contents. missing: number of
    paths in the parameters that do not exist; the stage that opens them reports the error.
    """

    files: int
    bytes: int
    sha256: str
    missing: int


def look(inputs: Iterable[Path], known: Path) -> Seen:
    """The state of the files and folders `inputs` together; `known`: database that caches their hashes."""
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
    """(name within the input, path) of each file; a folder is walked, and links are followed."""
    if place.is_file():
        yield place.name, str(place)
        return
    for folder, names in walk(place):
        # As strings: creating a Path for each of a million files would take most of the time.
        below, here = folder.relative_to(place).as_posix(), str(folder)
        for name in names:
            yield f"{below}/{name}", f"{here}{os.sep}{name}"


class Hashes:
    """SHA-256 of files, kept in a SQLite database by path, size, modification time and inode."""

    def __init__(self, database: Path) -> None:
        database.parent.mkdir(parents=True, exist_ok=True)
        self._rows = sqlite3.connect(database)
        self._rows.execute(
            "CREATE TABLE IF NOT EXISTS files (path BLOB PRIMARY KEY, stamp TEXT, sha256 TEXT) WITHOUT ROWID"
        )

    def of(self, file: str) -> tuple[str, int]:
        """The file's hash and size in bytes; a fixed phrase and 0 if it is a broken link or not a file."""
        try:
            status = os.stat(file)  # noqa: PTH116
        except OSError:
            return "broken link", 0
        if not stat.S_ISREG(status.st_mode):
            return "no file", 0
        path, stamp = (
            os.fsencode(os.path.abspath(file)),  # noqa: PTH100
            f"{status.st_size} {status.st_mtime_ns} {status.st_ino}",
        )
        row = self._rows.execute("SELECT stamp, sha256 FROM files WHERE path = ?", (path,)).fetchone()
        if row is not None and row[0] == stamp:
            return row[1], status.st_size
        content = sha256(Path(file))
        self._rows.execute("INSERT OR REPLACE INTO files VALUES (?, ?, ?)", (path, stamp, content))
        return content, status.st_size

    def close(self) -> None:
        """Commit the new hashes and close the database."""
        self._rows.commit()
        self._rows.close()
