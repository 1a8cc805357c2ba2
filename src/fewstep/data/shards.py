"""Reads a data set's folder: `index.json` and the WebDataset shards it names.

    data/index.json          which shards there are; grows with them, not with the samples
    data/train/00000.tar     members `key.png` and `key.json`; key: hash of the pixels
    data/heldout/00000.tar   the same, never trained on

Anything that is missing, damaged or different from the index raises an error with its name.
"""

import io
import tarfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from pydantic import ValidationError
from webdataset.tariterators import group_by_keys, tar_file_expander

from fewstep.artifacts.manifest import sha256
from fewstep.config.base import Section, describe, validate
from fewstep.core.errors import UserError
from fewstep.core.files import read_json
from fewstep.core.keyed import Key
from fewstep.data.record import Record
from fewstep.data.stream import Stream

INDEX = "index.json"
SPLITS = ("train", "heldout")
REBUILD = "delete its folder and run `dvc repro`"


@dataclass(frozen=True, eq=False)
class ImageRecord:
    """One prepared sample.

    key: its name, from a hash of its pixels.
    pixels: RGB, uint8 `[resolution, resolution, 3]`.
    labels: attribute -> value, for attributes that the caption states, or None for unlabelled data.
    hidden: the same for attributes that it does not state, or None.
    """

    key: str
    pixels: np.ndarray
    caption: str
    labels: Mapping[str, str] | None
    hidden: Mapping[str, str] | None = None


class Shard(Section):
    """One tar: its path relative to the data set's folder, its number of samples, its hash."""

    shard: str
    samples: int
    sha256: str

    @property
    def file_of_latents(self) -> str:
        """Name of the file that holds its encoded images."""
        return f"{Path(self.shard).stem}.safetensors"


class Index(Section):
    """The content of index.json.

    labels: attribute -> its sorted values, or null for unlabelled data. hidden: the same for attributes that
    the captions do not state. splits: "train" and "heldout" -> shards, in order. resumed: differences despite
    which unfinished work was resumed (FEWSTEP_RESUME), absent otherwise.
    """

    resolution: int
    labels: dict[str, tuple[str, ...]] | None
    hidden: dict[str, tuple[str, ...]] | None = None
    splits: dict[str, tuple[Shard, ...]]
    resumed: tuple[str, ...] | None = None


def read_index(folder: Path) -> Index:
    """Raises UserError naming the file, and the key if one is wrong."""
    path = folder / INDEX
    return validate(Index, read_json(path), "", path)


def open_images(folder: Path, split: str, key: Key) -> Stream[ImageRecord]:
    """The images of one split ("train" or "heldout") of the data set at `folder`.

    Raises UserError when the index is missing or wrong or has no such split; later, when a shard is
    missing, differs from its hash or is broken.
    """
    shards = read_index(folder).splits.get(split, ())
    if not shards:
        raise UserError(f"{folder}: has no {split!r} images; rebuild it with `dvc repro`")
    return Stream([s.samples for s in shards], lambda i: read_verified(folder, shards[i]), key)


def read_verified(folder: Path, shard: Shard) -> list[ImageRecord]:
    """The samples of a shard. Raises UserError naming the file when its hash differs from the index."""
    path = folder / shard.shard
    if sha256(path) != shard.sha256:
        raise UserError(f"{path}: differs from the hash in {folder / INDEX}; {REBUILD}")
    return read_shard(path)


def read_shard(path: Path) -> list[ImageRecord]:
    """The samples of one tar, in its order.

    Raises UserError naming the file and the sample when the tar is broken or a sample incomplete.
    """
    return [image_of(members, path) for members in members_of(path)]


def captions(folder: Path, split: str) -> Iterator[str]:
    """The captions of a split, in the order of its shards; no image is decoded. Raises as read_shard."""
    for shard in read_index(folder).splits[split]:
        for members in members_of(folder / shard.shard):
            yield record_of(members, folder / shard.shard).caption


def members_of(path: Path) -> Iterator[Mapping[str, Any]]:
    """Undecoded samples of a tar: suffix -> bytes, "__key__" -> key. Raises UserError if it is broken."""
    place = "at its start"
    try:
        with path.open("rb") as stream:
            for members in group_by_keys(tar_file_expander([{"url": str(path), "stream": stream}])):
                yield members
                place = f"after sample {members['__key__']}"
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; `dvc repro` makes it") from None
    except (tarfile.TarError, OSError, ValueError):
        raise UserError(f"{path}: broken {place}; {REBUILD}") from None


def image_of(members: Mapping[str, Any], path: Path) -> ImageRecord:
    """The sample of `path` that these members form. Raises UserError when they are damaged."""
    record, key = record_of(members, path), members["__key__"]
    try:
        with Image.open(io.BytesIO(member(members, "png", path)), formats=("PNG",)) as image:
            pixels = np.array(image)
    except (OSError, SyntaxError):
        raise UserError(f"{path}: the .png of sample {key} is damaged; {REBUILD}") from None
    if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[2] != 3:
        raise UserError(f"{path}: sample {key} is no 8-bit RGB image; {REBUILD}")
    return ImageRecord(key, pixels, record.caption, record.labels, record.hidden)


def record_of(members: Mapping[str, Any], path: Path) -> Record:
    """The JSON record of these members. Raises UserError when it is wrong."""
    try:
        return Record.model_validate_json(member(members, "json", path))
    except ValidationError as error:
        wrong = "; ".join(describe(error, ""))
        raise UserError(f"{path}: the .json of sample {members['__key__']}: {wrong}; {REBUILD}") from None


def member(members: Mapping[str, Any], suffix: str, path: Path) -> bytes:
    """The content of the member with this suffix. Raises UserError when there is none."""
    if suffix not in members:
        raise UserError(f"{path}: sample {members['__key__']} has no .{suffix}; {REBUILD}")
    content: bytes = members[suffix]
    return content
