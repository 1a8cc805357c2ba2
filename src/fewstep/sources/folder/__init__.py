"""A folder of images, captioned in one of three ways, looked for in this order:

- `metadata.jsonl`: one object per line, `file_name`, `caption` or `text`, optionally
  `aesthetic_score` and `labels` (attribute -> value), on which a classifier can be trained, and `hidden`, the
  attributes that are not in the caption;
- `captions.csv`: the same as columns, without labels;
- a caption file beside each image, at any depth (see `names`).

Samples come in the order of the table, or sorted by path; links to files and folders are followed. Other
files are reported as Skipped. No more than one folder's names are in memory at a time; a table takes
8 more bytes for each of its rows.
"""

import os
import re
from array import array
from collections.abc import Iterable, Iterator
from functools import lru_cache
from hashlib import blake2b
from pathlib import Path

import numpy as np

from fewstep.config.data import DataConfig
from fewstep.core.errors import UserError
from fewstep.sources.folder.files import ImageFile
from fewstep.sources.folder.names import (
    SUFFIXES,
    Captions,
    is_caption,
    is_image,
    is_not_decoded,
    reason_to_skip,
)
from fewstep.sources.folder.tables import SIMILAR, TABLES, Row, rows
from fewstep.sources.folder.walk import refuse, walk
from fewstep.sources.sample import (
    Sample,
    Skipped,
    Unreadable,
    caption_in,
    demand_captions,
    labels_in,
    score_in,
)
from fewstep.sources.units import Unit, runs

EXPECTED = (
    f"images ({', '.join(SUFFIXES)}) with a `.txt` of the same stem beside each, "
    "or a metadata.jsonl or captions.csv with file_name and caption"
)
Entry = ImageFile | Unreadable | Skipped
WINDOWS_DRIVE = re.compile(r"[A-Za-z]:[\\/]")


def inputs(config: DataConfig) -> list[Path]:
    """The folder."""
    return [Path(config.path or "")]


def count(config: DataConfig) -> int | None:
    """Files that are named like images; None with a table, which must be read to be counted."""
    (root,) = inputs(config)
    if not root.is_dir() or tables_in(root, TABLES):
        return None
    return sum(
        is_image(name) and not name.startswith(".")
        for folder, names in walk(root)
        if not is_hidden(folder, root)
        for name in names
    )


def expected(config: DataConfig) -> str:
    """Images and their captions."""
    return EXPECTED


def units(config: DataConfig, seed: int) -> Iterator[Unit]:
    """Runs of the images below `config.path` and of the skipped files between them; `seed` is not used.

    Raises UserError when there is no such folder, or a table of another kind.
    """
    (root,) = inputs(config)
    if not root.is_dir():
        raise UserError(f"data.path = {config.path}: no such folder; expected {EXPECTED}")
    tables = tables_in(root, TABLES)
    if not tables and (others := tables_in(root, SIMILAR)):
        kinds = ", or ".join(f"{name} ({content})" for name, content in TABLES.items())
        raise UserError(f"{others[0]}: a table of this name is not read; expected {kinds}")
    for run in runs(from_table(root, *tables) if tables else from_caption_files(root)):
        files = [path for entry in run if isinstance(entry, ImageFile) for path in entry.paths(root)]
        samples = sum(not isinstance(entry, Skipped) for entry in run)
        yield Unit(f"{run[0].name} to {run[-1].name}", run, tuple(files), samples)


def read(unit: Unit, config: DataConfig, seed: int) -> Iterator[Sample | Unreadable | Skipped]:
    """The entries of a run; `seed` is not used."""
    (root,) = inputs(config)
    for entry in unit.content:
        yield entry.read(root) if isinstance(entry, ImageFile) else entry


def samples(config: DataConfig, seed: int) -> Iterator[Sample | Unreadable | Skipped]:
    """Every image below `config.path`; `seed` is not used.

    Raises UserError when there is no such folder, no image, no caption at all, or a table of another kind.
    """
    entries = (entry for unit in units(config, seed) for entry in read(unit, config, seed))
    yield from demand_captions(entries, config.path, EXPECTED)


def tables_in(root: Path, known: Iterable[str]) -> list[Path]:
    """The files of `root` that have one of the names `known`, in whatever case; in the order of `known`."""
    order = {name: place for place, name in enumerate(known)}
    try:
        with os.scandir(root) as entries:
            there = sorted(e.name for e in entries if e.name.lower() in order and not e.is_dir())
    except OSError as error:
        refuse(error)
    return [root / name for name in sorted(there, key=lambda name: order[name.lower()])]


def from_table(root: Path, table: Path, *others: Path) -> Iterator[Entry]:
    """One sample per row of `table`; then the files that it does not list."""
    listed = Listed()
    for row in rows(table):
        yield from_row(root, row, listed)
    for folder, names in walk(root):
        below, hidden = folder.relative_to(root), is_hidden(folder, root)
        for name in names:
            path = folder / name
            if path == table or path in listed:
                continue
            if hidden or name.startswith("."):
                reason = "hidden file"
            elif path in others:
                reason = f"another table is used ({table.name})"
            elif is_caption(name):
                reason = f"caption file unused beside {table.name}"
            else:
                reason = "not in the table" if is_image(name) else reason_to_skip(path)
            yield Skipped((below / name).as_posix(), reason)


def from_caption_files(root: Path) -> Iterator[Entry]:
    """One sample per image, folder by folder; in each folder, samples come before skipped files."""
    for folder, names in walk(root):
        below = folder.relative_to(root)
        hide = is_hidden(folder, root)
        hidden = [name for name in names if hide or name.startswith(".")]
        names = [name for name in names if not (hide or name.startswith("."))]
        images = [name for name in names if is_image(name)]
        others = [name for name in names if not is_image(name) and not is_caption(name)]
        # The caption of an image that is not decoded is not reported as a caption without an image.
        undecoded = [name for name in others if is_not_decoded(name)]
        captions = Captions([*images, *undecoded], [name for name in names if is_caption(name)])
        for name in images:
            yield ImageFile((below / name).as_posix(), captions.of(name))
        for name in undecoded:
            captions.of(name)
        skipped = [(name, "hidden file") for name in hidden]
        skipped += [(name, reason_to_skip(folder / name)) for name in others]
        skipped += captions.left()
        for name, reason in sorted(skipped):
            yield Skipped((below / name).as_posix(), reason)


def from_row(root: Path, row: Row, listed: "Listed") -> ImageFile | Unreadable:
    """The sample a table's row describes; its file counts as listed, whatever is wrong with the row."""
    name = row.record.get("file_name")
    try:
        place = place_in(root, name) if isinstance(name, str) and name else ""
        if place:
            listed.add(root / place)
    except ValueError as error:
        return Unreadable(row.place, "broken metadata", row.fault or str(error))
    if row.fault or not place:
        return Unreadable(row.place, "broken metadata", row.fault or "no `file_name`")
    try:
        caption, score = caption_in(row.record, "caption", "text"), score_in(row.record, "aesthetic_score")
        labels, hidden = labels_in(row.record, "labels"), labels_in(row.record, "hidden")
    except ValueError as error:
        return Unreadable(place, "broken metadata", f"{row.place}: {error}")
    return ImageFile(place, None, caption, score, labels, hidden)


def place_in(root: Path, name: str) -> str:
    """`name` of a table relative to `root`; it may have been written on Windows.

    Raises ValueError when it leads out of the folder, where changes would not be detected.
    """
    if WINDOWS_DRIVE.match(name):
        raise ValueError("`file_name` is an absolute path; expected one relative to the folder")
    if not is_file_name(name):
        raise ValueError("`file_name` is no name that a file can have")
    base = os.path.abspath(root)  # noqa: PTH100
    if "\\" in name and not os.path.lexists(os.path.join(base, name)):  # noqa: PTH118
        name = name.replace("\\", "/")
    place = os.path.relpath(os.path.join(base, name), base)  # noqa: PTH118
    if place.split("/")[0] == os.pardir:
        raise ValueError("`file_name` leads out of the folder; expected a path relative to it")
    return place


def is_file_name(name: str) -> bool:
    """Whether the system accepts such a name: JSON can express NUL and half a surrogate pair."""
    try:
        return b"\0" not in os.fsencode(name)
    except UnicodeEncodeError:
        return False


def is_hidden(folder: Path, root: Path) -> bool:
    """Whether `folder` or one above it, below `root`, is hidden."""
    return any(part.startswith(".") for part in folder.relative_to(root).parts)


class Listed:
    """The files that a table lists: 8 bytes of hash for each row.

    A file is identified by its folder, links resolved, and its name.
    """

    def __init__(self) -> None:
        self._hashes = array("Q")
        self._sorted: np.ndarray | None = None
        self._real = lru_cache(1000)(os.path.realpath)

    def add(self, path: Path) -> None:
        """Add a file. All must be added before the first is looked up."""
        self._hashes.append(self._hash(path))

    def __contains__(self, path: Path) -> bool:
        if self._sorted is None:
            self._sorted = np.sort(np.array(self._hashes, np.uint64))
        wanted = np.uint64(self._hash(path))
        at = int(np.searchsorted(self._sorted, wanted))
        return at < len(self._sorted) and bool(self._sorted[at] == wanted)

    def _hash(self, path: Path) -> int:
        place = os.fsencode(f"{self._real(path.parent)}/{path.name}")
        return int.from_bytes(blake2b(place, digest_size=8).digest(), "big")
