"""Tars made member by member, and what the source `webdataset` reads of them."""

import json
import tarfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Literal

from fewstep.config.data import DataConfig, KeysConfig
from fewstep.sources import webdataset
from fewstep.sources.sample import (
    Sample,
    Skipped,
    Unreadable,
)

Entry = Sample | Unreadable | Skipped
BLOCK = 512
PIPE_CHUNK = 1 << 16
NO_IMAGE = "none of jpg, jpeg, png, webp"


def config_of(path: object, **keys: Any) -> DataConfig:
    return DataConfig(source="webdataset", path=str(path), resolution=8, keys=KeysConfig(**keys))


def read(path: object, **keys: Any) -> list[Entry]:
    return list(webdataset.samples(config_of(path, **keys), 0))


def info_of(name: str, content: bytes = b"", **fields: Any) -> tuple[tarfile.TarInfo, bytes]:
    info = tarfile.TarInfo(name)
    info.size = len(content)
    for key, value in fields.items():
        setattr(info, key, value)
    return info, content


def caption_of(key: str) -> str:
    return f"caption of {key}".encode("utf-8", "replace").decode()


def pair(key: str, image: str = "jpg", metadata: str = "json") -> list[tuple[str, bytes]]:
    return [
        (f"{key}.{image}", caption_of(key)[::-1].encode()),
        (f"{key}.{metadata}", json.dumps({"caption": caption_of(key)}).encode()),
    ]


def tar(
    path: Path,
    members: Iterable[tuple[str | tarfile.TarInfo, bytes]],
    format: Literal[0, 1, 2] = tarfile.GNU_FORMAT,
) -> Path:
    """A tar of exactly these members; names may repeat and fields may lie."""
    with path.open("wb") as stream:
        for named, content in members:
            info = named if isinstance(named, tarfile.TarInfo) else info_of(named, content)[0]
            stream.write(info.tobuf(format, "utf-8", "surrogateescape"))
            stream.write(content + bytes(-len(content) % BLOCK))
        stream.write(bytes(2 * BLOCK))
    return path


def good(*keys: str) -> list[tuple[str | tarfile.TarInfo, bytes]]:
    return [member for key in keys for member in pair(key)]


def expected(path: str, *keys: str) -> list[Sample]:
    return [Sample(f"{path}/{key}", caption_of(key)[::-1].encode(), caption_of(key)) for key in keys]


def samples(entries: Sequence[Entry]) -> list[Sample]:
    return [entry for entry in entries if isinstance(entry, Sample)]


def faults(entries: Sequence[Entry]) -> list[Unreadable]:
    return [entry for entry in entries if isinstance(entry, Unreadable)]


def skipped(entries: Sequence[Entry]) -> list[Skipped]:
    return [entry for entry in entries if isinstance(entry, Skipped)]


JPG, JSON = pair("1")
