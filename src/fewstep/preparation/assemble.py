"""Assembles one shard from parts, in any process. Its bytes depend only on the samples and their order."""

import hashlib
import io
import os
import tarfile
from dataclasses import dataclass
from pathlib import Path

from fewstep.artifacts.manifest import sha256
from fewstep.core.files import whole_file
from fewstep.preparation.parts import PartReader

MODE = 0o644


@dataclass(frozen=True)
class Member:
    """A sample of a shard: its key, its record as JSON, and where its image is: a part and a number in it."""

    key: str
    record: bytes
    part: Path
    number: int


@dataclass(frozen=True)
class PlannedShard:
    """A shard to be written. name: in the data set, `train/00000.tar`. folder: of unfinished work."""

    name: str
    members: tuple[Member, ...]
    folder: Path

    @property
    def file(self) -> Path:
        """Where the shard is written; the name has a hash of all that its bytes depend on."""
        key = hashlib.sha256()
        for member in self.members:
            key.update(f"{member.part.name} {member.number} {member.key}\n".encode() + member.record)
        return self.folder / f"shard-{self.name.replace('/', '-')}-{key.hexdigest()[:16]}.tar"


@dataclass(frozen=True)
class Written:
    """A finished shard."""

    name: str
    file: Path
    samples: int
    sha256: str


def write(shard: PlannedShard) -> Written:
    """Write a shard, unless it exists."""
    file = shard.file
    if not file.exists():
        part, reader = None, None
        with (
            whole_file(file, f".{os.getpid()}") as staging,
            staging.open("wb") as stream,
            tarfile.open(fileobj=stream, mode="w|") as tar,
        ):
            for member in shard.members:
                if reader is None or part != member.part:
                    part, reader = member.part, PartReader(member.part)
                add(tar, f"{member.key}.json", member.record)
                add(tar, f"{member.key}.png", reader.image(member.number))
    return Written(shard.name, file, len(shard.members), sha256(file))


def add(tar: tarfile.TarFile, name: str, content: bytes) -> None:
    """Append a file without time and owner."""
    info = tarfile.TarInfo(name)
    info.size, info.mode = len(content), MODE
    tar.addfile(info, io.BytesIO(content))
