"""Parts: the prepared samples of one unit of the source, in a file that survives a kill.

A part is a zip without compression. The member `0.png` is the image of entry 0. The last member,
`entries.jsonl`, has a line for each entry of the unit, in order. The file's name is the unit's position and a
hash of all that the content depends on, so an existing part is not made again.
"""

import hashlib
import json
import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from importlib import import_module
from pathlib import Path
from typing import Any
from zipfile import BadZipFile, ZipFile

from fewstep.config.data import DataConfig
from fewstep.core.errors import UserError
from fewstep.core.files import whole_file
from fewstep.data.record import Record
from fewstep.preparation.examine import Prepared, Rejected, examine
from fewstep.sources.sample import Sample, Skipped, Unreadable
from fewstep.sources.units import Unit

ENTRIES = "entries.jsonl"
LATER: dict[str, bool | dict[str, bool]] = {
    "count": True,
    "heldout": True,
    "split_by": True,
    "shard_size": True,
    "filters": {"max_quarantined_share": True},
}
"""Keys of `data` that have no influence on a part."""


@dataclass(frozen=True)
class Task:
    """A part to be made. number: of the unit in the source. limit: samples after which reading may stop."""

    number: int
    unit: Unit
    config: DataConfig
    seed: int
    folder: Path
    limit: int | None = None

    @property
    def file(self) -> Path:
        """Where the part is."""
        config = self.config.model_dump_json(exclude=LATER)
        key = hashlib.sha256(f"{self.unit.stamp()}\n{config}\n{self.seed}\n{self.limit}".encode()).hexdigest()
        return self.folder / f"part-{self.number:08d}-{key[:16]}.zip"


@dataclass(frozen=True)
class Part:
    """A finished part. samples: the number of its entries that are not skipped."""

    file: Path
    samples: int


@dataclass(frozen=True)
class Kept:
    """A prepared sample in a part; number: of its image."""

    number: int
    digest: bytes
    record: Record
    size: tuple[int, int]


Outcome = Kept | Rejected | Unreadable | Skipped
"""What became of an entry."""


def make(task: Task) -> Part:
    """Prepare a unit, unless its part exists.

    Memory holds one sample and a line for each.
    """
    file = task.file
    if file.exists():
        return Part(file, sum(not isinstance(outcome, Skipped) for outcome, _ in outcomes(file)))
    samples = 0
    lines: list[str] = []
    source = import_module(f"fewstep.sources.{task.config.source}")
    # A worker of a stage that was killed may still write the same part.
    with whole_file(file, f".{os.getpid()}") as staging, ZipFile(staging, "w") as part:
        for entry in source.read(task.unit, task.config, task.seed):
            line: dict[str, Any]
            if isinstance(entry, Skipped):
                line = {"skipped": asdict(entry)}
            else:
                outcome = examine(entry, task.config)
                samples += 1
                captioned = isinstance(entry, Sample) and entry.caption is not None
                line = line_of(outcome) | {"captioned": captioned}
                if isinstance(outcome, Prepared):
                    part.writestr(f"{len(lines)}.png", outcome.png)
            lines.append(json.dumps(line))
            if samples == task.limit:
                break
        part.writestr(ENTRIES, "\n".join(lines))
    return Part(file, samples)


def line_of(outcome: Prepared | Rejected | Unreadable) -> dict[str, Any]:
    """An outcome as JSON, without the image."""
    match outcome:
        case Prepared():
            record = outcome.record.model_dump(mode="json", exclude_none=True)
            return {"prepared": {"digest": outcome.digest.hex(), "record": record, "size": outcome.size}}
        case Rejected():
            return {"rejected": outcome.reason}
        case Unreadable():
            return {"unreadable": asdict(outcome)}


def outcomes(file: Path) -> Iterator[tuple[Outcome, bool]]:
    """What became of the entries of a part, in order, and whether each had a caption. No image is read.

    Raises UserError naming the file when it is damaged.
    """
    for number, line in enumerate(PartReader(file).lines()):
        yield outcome_of(number, line), line.get("captioned", False)


def outcome_of(number: int, line: dict[str, Any]) -> Outcome:
    """The reverse of `line_of`."""
    if values := line.get("prepared"):
        record, size = Record.model_validate(values["record"]), tuple(values["size"])
        return Kept(number, bytes.fromhex(values["digest"]), record, size)
    if "rejected" in line:
        return Rejected(line["rejected"])
    if "unreadable" in line:
        return Unreadable(**line["unreadable"])
    return Skipped(**line["skipped"])


class PartReader:
    """Reads members of a part. Raises UserError naming the file when it is missing or damaged."""

    def __init__(self, file: Path) -> None:
        self._file = file
        try:
            self._zip = ZipFile(file)
        except (OSError, BadZipFile) as error:
            raise self._broken(error) from None

    def image(self, number: int) -> bytes:
        """The PNG of an entry."""
        return self._read(f"{number}.png")

    def lines(self) -> list[dict[str, Any]]:
        """The JSON of all entries."""
        return [json.loads(line) for line in self._read(ENTRIES).splitlines()]

    def _read(self, name: str) -> bytes:
        try:
            return self._zip.read(name)
        except (OSError, BadZipFile, KeyError) as error:
            raise self._broken(error) from None

    def _broken(self, error: Exception) -> UserError:
        return UserError(f"{self._file}: damaged ({error}); delete this file and run again")
