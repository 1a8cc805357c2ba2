"""A folder of pictures, captioned in one of three ways, looked for in this order:

- `metadata.jsonl`: one object per line, `file_name`, `caption` or `text`, optionally `aesthetic_score` and
  `labels` (attribute -> value), on which a judge can be trained;
- `captions.csv`: the same as columns, without labels;
- `name.txt` beside `name.jpg`, at any depth.

Samples come in the order of the table, or sorted by path. No more than one directory's names are in
memory at a time.
"""

import csv
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NoReturn

from fewstep.config.data import DataConfig
from fewstep.errors import UserError
from fewstep.sources.sample import (
    Sample,
    Unreadable,
    caption_in,
    demand_captions,
    labels_in,
    parse_object,
    score_in,
)

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp")
EXPECTED = (
    f"pictures ({', '.join(SUFFIXES)}) with a `.txt` of the same stem beside each, "
    "or a metadata.jsonl or captions.csv with file_name and caption"
)


def samples(config: DataConfig, seed: int) -> Iterator[Sample | Unreadable]:
    """Every picture below `config.path`; `seed` is not used.

    Raises UserError when there is no such folder, no picture or no caption at all.
    """
    root = Path(config.path or "")
    if not root.is_dir():
        raise UserError(f"data.path = {config.path}: no such folder; expected {EXPECTED}")
    if (root / "metadata.jsonl").is_file():
        entries = from_json_lines(root, root / "metadata.jsonl")
    elif (root / "captions.csv").is_file():
        entries = from_csv(root, root / "captions.csv")
    else:
        entries = from_text_files(root)
    yield from demand_captions(entries, config.path, EXPECTED)


def from_json_lines(root: Path, table: Path) -> Iterator[Sample | Unreadable]:
    """One sample per line of `table` that is not blank."""
    with table.open("rb") as lines:
        for number, line in enumerate(lines, start=1):
            if not line.strip():
                continue
            place = f"{table.name} line {number}"
            try:
                yield row(root, place, parse_object(line))
            except ValueError as error:
                yield Unreadable(place, "broken metadata", str(error))


def from_csv(root: Path, table: Path) -> Iterator[Sample | Unreadable]:
    """One sample per row of `table`. Raises UserError when it is no table of file names."""
    try:
        with table.open(newline="", encoding="utf-8-sig") as lines:
            rows = csv.DictReader(lines)
            if "file_name" not in (rows.fieldnames or ()):
                raise UserError(f"{table}: no column `file_name`; its first line reads {rows.fieldnames}")
            for record in rows:
                yield row(root, f"{table.name} line {rows.line_num}", record)
    except (csv.Error, UnicodeDecodeError) as error:
        raise UserError(f"{table}: not readable as UTF-8 CSV: {error}") from None


def from_text_files(root: Path) -> Iterator[Sample | Unreadable]:
    """One sample per picture, hidden files aside."""
    for folder, below, names in os.walk(root, onerror=refuse):
        below.sort()
        for name in sorted(names):
            path = Path(folder, name)
            if path.suffix.lower() not in SUFFIXES or name.startswith("."):
                continue
            place = path.relative_to(root).as_posix()
            try:
                caption = path.with_suffix(".txt").read_text(encoding="utf-8-sig")
            except FileNotFoundError:
                caption = None
            except (OSError, UnicodeDecodeError) as error:
                yield Unreadable(place, "broken metadata", f"its .txt: {reason_of(error)}")
                continue
            yield picture(root, place, caption, None)


def row(root: Path, place: str, record: Mapping[str, Any]) -> Sample | Unreadable:
    """The sample a table's row describes."""
    name = record.get("file_name")
    if not isinstance(name, str) or not name:
        return Unreadable(place, "broken metadata", "no `file_name`")
    try:
        caption, score = caption_in(record, "caption", "text"), score_in(record, "aesthetic_score")
        labels = labels_in(record, "labels")
    except ValueError as error:
        return Unreadable(name, "broken metadata", f"{place}: {error}")
    return picture(root, name, caption, score, labels)


def picture(
    root: Path, name: str, caption: str | None, score: float | None, labels: Mapping[str, str] | None = None
) -> Sample | Unreadable:
    """The sample whose file is `root / name`."""
    try:
        return Sample(name, (root / name).read_bytes(), caption, score, labels)
    except OSError as error:
        return Unreadable(name, "picture not readable", reason_of(error))


def reason_of(error: OSError | UnicodeDecodeError) -> str:
    """What went wrong, without the path."""
    return "not UTF-8" if isinstance(error, UnicodeDecodeError) else str(error.strerror)


def refuse(error: OSError) -> NoReturn:
    """A directory that cannot be listed would otherwise be skipped in silence."""
    raise UserError(f"{error.filename}: cannot be listed ({error.strerror})")
