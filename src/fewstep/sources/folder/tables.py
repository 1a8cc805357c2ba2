"""The rows of a folder's table: `metadata.jsonl` (an object on each line) or `captions.csv` (strict CSV).

A broken row does not affect other rows: its line is reported, and reading goes on with the next line.
"""

import codecs
import csv
from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fewstep.core.errors import UserError
from fewstep.sources.folder.names import is_image
from fewstep.sources.sample import parse_object

JSON_LINES = 'an object on each line, {"file_name": "a.jpg", "caption": "..."}'
CSV = "comma-separated columns, with a first line such as file_name,caption"
TABLES = {"metadata.jsonl": JSON_LINES, "captions.csv": CSV}
"""Names of tables, the preferred one first, and what each holds."""
SIMILAR = frozenset(
    f"{stem}{suffix}"
    for stem in ("metadata", "captions")
    for suffix in (".jsonl", ".json", ".ndjson", ".csv", ".tsv", ".parquet")
).difference(TABLES)
"""Names that other tools use for tables, and that are not read."""
NOT_UTF8 = "not UTF-8; save it as UTF-8"
COMMA = "a caption with a comma needs quotes"
QUOTES = "a quote inside a quoted caption is written twice"
Line = tuple[int, str]
"""Its number, from 1, and its text with the line end."""


@dataclass(frozen=True)
class Row:
    """One row as it is in the table.

    place: the table and line. record: column -> value; for a broken row, at most its file name.
    fault: what is broken, or "".
    """

    place: str
    record: Mapping[str, Any] = field(default_factory=dict)
    fault: str = ""


def rows(table: Path) -> Iterator[Row]:
    """Every row that is not blank, read according to the table's suffix.

    Raises UserError, in one line, when it cannot be read at all, or is no such table.
    """
    return from_csv(table) if table.suffix.lower() == ".csv" else from_json_lines(table)


def from_json_lines(table: Path) -> Iterator[Row]:
    """Raises UserError when the file is JSON over several lines."""
    first = True
    for number, line in lines_of(table):
        text, place = line.strip(), f"{table.name} line {number}"
        if not text:
            continue
        if first and (text == "{" or text.startswith("[")):
            raise UserError(f"{table}: is one JSON value over several lines; expected {JSON_LINES}")
        first = False
        if fault := encoding_fault(line):
            yield Row(place, fault=fault)
            continue
        try:
            yield Row(place, parse_object(text))
        except ValueError as error:
            yield Row(place, fault=str(error))


def from_csv(table: Path) -> Iterator[Row]:
    """Raises UserError when the first line does not name the columns that are needed."""
    lines = Lines(lines_of(table))
    columns = columns_of(table, next((text for _, text in lines if text.strip()), ""))
    where = columns.index("file_name")
    for number, text in lines:
        if not text.strip():
            continue
        fields, swallowed, fault = record_from(text, lines)
        fault = encoding_fault(text) or fault or count_fault(len(fields), len(columns))
        place = f"{table.name} line {number}"
        if not fault:
            yield Row(place, dict(zip(columns, fields, strict=True)))
            continue
        lines.put_back(swallowed)
        parts = text.split(",")
        about = {"file_name": parts[where].strip(' "\r\n')} if where < len(parts) else {}
        yield Row(place, about, fault)


def record_from(text: str, lines: "Lines") -> tuple[list[str], list[Line], str]:
    """The fields of the record that begins with the line `text`, the further lines it took, and its fault."""
    taken: list[Line] = []

    def feed() -> Iterator[str]:
        yield text
        for line in lines:
            taken.append(line)
            yield line[1]

    try:
        fields = next(csv.reader(feed(), strict=True, skipinitialspace=True))
    except csv.Error as error:
        if taken:
            return [], taken, f"a quote is opened and not closed; {QUOTES}"
        return [], taken, f"not readable as CSV ({error}); {QUOTES}"
    if any(holds_row(value) for value in fields):
        return [], taken, f"a quote is opened and not closed; {QUOTES}"
    fault = next((fault for _, line in taken if (fault := encoding_fault(line))), "")
    return fields, taken, fault


def holds_row(value: str) -> bool:
    """Whether a field of several lines seems to contain another row, since its own quote was not closed."""
    lines = value.splitlines()
    return len(lines) > 1 and any(
        is_image(part.strip(' "')) for line in lines if "," in line for part in line.split(",")
    )


def count_fault(fields: int, columns: int) -> str:
    """What is wrong with a record of that many fields, or ""."""
    if fields == columns:
        return ""
    if fields < columns:
        return f"{fields} of the {columns} fields that the first line names"
    return f"{fields} fields where the first line names {columns}; {COMMA}"


def columns_of(table: Path, first: str) -> list[str]:
    """The names in the first line. Raises UserError when one is missing, or there twice."""
    for mark, name in {";": "semicolons", "\t": "tabs", "|": "bars"}.items():
        if mark in first and "file_name" in (part.strip(' "\r\n') for part in first.split(mark)):
            raise UserError(f"{table}: its columns are separated by {name}; expected {CSV}")
    try:
        columns = [name.strip() for name in next(csv.reader([first], strict=True, skipinitialspace=True), [])]
    except csv.Error as error:
        raise UserError(f"{table}: its first line is no list of columns ({error}); expected {CSV}") from None
    reads = f"its first line reads {str(columns)[:200]}; expected {CSV}"
    if "file_name" not in columns:
        raise UserError(f"{table}: no column `file_name`; {reads}")
    if not {"caption", "text"}.intersection(columns):
        raise UserError(f"{table}: no column `caption`; {reads}")
    if twice := next((name for name in columns if name and columns.count(name) > 1), None):
        raise UserError(f"{table}: the column `{twice}` is there twice; {reads}")
    return columns


class Lines:
    """Numbered lines, of which some can be put back to be read again."""

    def __init__(self, source: Iterator[Line]) -> None:
        self._source = source
        self._waiting: deque[Line] = deque()

    def __iter__(self) -> Iterator[Line]:
        return self

    def __next__(self) -> Line:
        return self._waiting.popleft() if self._waiting else next(self._source)

    def put_back(self, lines: list[Line]) -> None:
        """Put `lines` back, to be read next in this order."""
        self._waiting.extendleft(reversed(lines))


def lines_of(table: Path) -> Iterator[Line]:
    """Its numbered lines, with any line end; bytes that are not UTF-8 become surrogates (`encoding_fault`).

    Raises UserError when the file cannot be opened or is UTF-16.
    """
    try:
        with table.open("rb") as stream:
            head = stream.readline(4096)
        if head.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)) or 4 * head.count(0) > len(head):
            raise UserError(f"{table}: is UTF-16, which is not read; save it as UTF-8")
        with table.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as lines:
            yield from enumerate(lines, start=1)
    except OSError as error:
        raise UserError(f"{table}: cannot be read: {error.strerror}") from None


def encoding_fault(line: str) -> str:
    """Why a line is not valid text, or ""."""
    if "\0" in line:
        return "it holds a NUL byte"
    try:
        line.encode()
    except UnicodeEncodeError:
        return NOT_UTF8
    return ""
