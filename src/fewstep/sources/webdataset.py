"""Tar archives in the WebDataset convention: the members `key.jpg` and `key.json` are one sample.

Each archive is read by itself, once, front to back, so it may be a pipe or a URL. A damaged or
truncated one is reported by name after everything before the damage.
"""

import tarfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, Any, Self
from urllib.parse import urlparse

from webdataset.gopen import gopen
from webdataset.shardlists import expand_urls
from webdataset.tariterators import group_by_keys, tar_file_expander

from fewstep.config.data import DataConfig, KeysConfig
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


def samples(config: DataConfig, seed: int) -> Iterator[Sample | Unreadable]:
    """Every sample of the archives `config.path` names, in their order; `seed` is not used.

    Raises UserError when a local archive does not exist or no sample has a caption.
    """
    pattern = config.path or ""
    urls = expand_urls(pattern)
    for url in urls:
        if not urlparse(url).scheme and not Path(url).is_file():
            raise UserError(
                f"data.path = {pattern}: there is no file {url}; expected tars, e.g. `data/{{000..009}}.tar`"
            )
    root = pattern.partition("{")[0].rpartition("/")[0] + "/"
    entries = (entry for url in urls for entry in archive(url, url.removeprefix(root), config.keys))
    expected = (
        f"members `key.{config.keys.image[0]}` and `key.{config.keys.metadata}` with a "
        f"`{config.keys.caption}` (the names are data.keys)"
    )
    yield from demand_captions(entries, pattern, expected)


def archive(url: str, name: str, keys: KeysConfig) -> Iterator[Sample | Unreadable]:
    """The samples of one archive, and one Unreadable if it is damaged."""
    problems: list[Exception] = []

    def stop(error: Exception) -> bool:
        problems.append(error)
        return False

    count = 0
    try:
        with Ending(gopen(url)) as stream:
            files = tar_file_expander([{"url": url, "stream": stream}], handler=stop)
            for members in group_by_keys(files, handler=stop):
                count += 1
                yield sample(name, members, keys)
            if not problems:
                stream.check()
    except (OSError, tarfile.TarError) as error:
        problems.append(error)
    if problems:
        yield Unreadable(name, "broken archive", f"{type(problems[0]).__name__} after {count} samples")


def sample(archive: str, members: Mapping[str, Any], keys: KeysConfig) -> Sample | Unreadable:
    """The sample that the `members` of one key make: suffix -> bytes."""
    name = f"{archive}/{members['__key__']}"
    image = next((members[suffix] for suffix in keys.image if suffix in members), None)
    if image is None:
        return Unreadable(name, "no picture", f"none of {', '.join(keys.image)}")
    try:
        record = parse_object(members.get(keys.metadata, b"{}"))
        caption, score = caption_in(record, keys.caption), score_in(record, keys.aesthetic_score)
        labels = labels_in(record, keys.labels)
    except ValueError as error:
        return Unreadable(name, "broken metadata", f".{keys.metadata}: {error}")
    return Sample(name, image, caption, score, labels)


class Ending:
    """A stream that knows whether the tar read from it was whole.

    At a damaged or cut-off header tarfile stops as if the archive ended there. So what it leaves
    unread must be zeros, as must the last block. (Compressed archives notice a cut themselves.)
    """

    BLOCK = 512
    MAGIC = slice(257, 262)  # "ustar", in the first header of an uncompressed archive

    def __init__(self, stream: IO[bytes]) -> None:
        self._stream = stream
        self._head = self._tail = b""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._stream.close()

    def read(self, size: int) -> bytes:
        """As of a file."""
        data = self._stream.read(size)
        self._head = self._head or data[: self.BLOCK]
        self._tail = (self._tail + data)[-self.BLOCK :]
        return data

    def check(self) -> None:
        """Read what is left. Raises tarfile.ReadError when the archive was not whole."""
        left = b""
        while data := self.read(1 << 20):
            left = left or data.strip(b"\0")
        if self._head[self.MAGIC] == b"ustar" and (left or self._tail != bytes(self.BLOCK)):
            raise tarfile.ReadError("not at the end of the archive")
