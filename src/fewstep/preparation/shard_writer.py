"""Writes shards whose bytes depend only on the samples and their order."""

from pathlib import Path
from types import TracebackType
from typing import Self

from webdataset.writer import TarWriter

from fewstep.artifacts.manifest import sha256
from fewstep.data.shards import Record, Shard


class ShardWriter:
    """The shards of one split, `folder/split/00000.tar` and so on, of `size` samples each.

    `shards` lists them once the writer is closed.
    """

    def __init__(self, folder: Path, split: str, size: int) -> None:
        self.shards: list[Shard] = []
        self._folder, self._split, self._size = folder, split, size
        self._samples = 0
        self._tar: TarWriter | None = None
        (folder / split).mkdir()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._finish()

    def write(self, key: str, png: bytes, record: Record) -> None:
        """Append one sample."""
        if self._samples == self._size:
            self._finish()
        if self._tar is None:
            self._file = (self._folder / self._name).open("wb")
            self._tar = TarWriter(self._file, encoder=False, mtime=0, user="", group="", mode=0o644)
        text = record.model_dump_json(exclude_none=True).encode()
        self._tar.write({"__key__": key, "png": png, "json": text})
        self._samples += 1

    @property
    def _name(self) -> str:
        return f"{self._split}/{len(self.shards):05d}.tar"

    def _finish(self) -> None:
        """Close the open shard, if any."""
        if self._tar is None:
            return
        self._tar.close()
        self._file.close()
        digest = sha256(self._folder / self._name)
        self.shards.append(Shard(shard=self._name, samples=self._samples, sha256=digest))
        self._tar, self._samples = None, 0
