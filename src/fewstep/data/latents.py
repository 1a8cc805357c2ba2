"""Encoded images with their captions as text, as the teacher's own training reads them."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from fewstep.core.files import whole_file
from fewstep.core.keyed import Key
from fewstep.data.shards import read_index
from fewstep.data.stream import Stream

CAPTIONS = "captions"


@dataclass(frozen=True)
class Latent:
    """One encoded image `[C, h, w]` and its caption."""

    latent: Tensor
    caption: str


def save_latents(file: Path, latents: Tensor, captions: Sequence[str]) -> None:
    """Write the latents `[N, C, h, w]` of a shard atomically, with the captions in the file's header."""
    with whole_file(file) as staging:
        save_file({"latents": latents}, staging, {CAPTIONS: json.dumps(list(captions))})


def open_latents(data: Path, split: str, folder: Path, order: Key) -> Stream[Latent]:
    """The latents of a split in keyed order; folder: holds a file per shard."""
    shards = read_index(data).splits[split]
    files = [folder / shard.file_of_latents for shard in shards]
    return Stream([shard.samples for shard in shards], partial(_load, files), order)


def _load(files: Sequence[Path], number: int) -> list[Latent]:
    with safe_open(files[number], "pt") as file:
        latents, captions = file.get_tensor("latents"), json.loads(file.metadata()[CAPTIONS])
    return [Latent(latent, caption) for latent, caption in zip(latents, captions, strict=True)]
