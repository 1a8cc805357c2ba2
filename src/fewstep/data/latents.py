"""Pictures encoded once: what trains a denoiser on real data."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from fewstep.artifacts.folder import whole_file
from fewstep.data.pixels import picture_batch
from fewstep.data.shards import Shard, read_index, read_verified
from fewstep.data.stream import Stream
from fewstep.hardware import device
from fewstep.keyed import Key

BATCH = 256


@dataclass(frozen=True)
class Latent:
    """One encoded picture `[C, h, w]` and its caption."""

    latent: Tensor
    caption: str


def encode_shards(data: Path, split: str, encode: Callable[[Tensor], Tensor], folder: Path) -> None:
    """Encode every shard of a split once, into `folder`; shards already there are kept."""
    for shard in read_index(data).splits[split]:
        target = folder / f"{Path(shard.shard).stem}.safetensors"
        if target.exists():
            continue
        pictures = read_verified(data, shard)
        with torch.no_grad(), whole_file(target) as staging:
            parts = [
                encode(picture_batch(pictures[i : i + BATCH]).to(device())).cpu()
                for i in range(0, len(pictures), BATCH)
            ]
            save_file({"latents": torch.cat(parts)}, staging)


def open_latents(data: Path, split: str, folder: Path, order: Key) -> Stream[Latent]:
    """Encoded pictures of a split in keyed order."""
    shards = read_index(data).splits[split]
    return Stream([shard.samples for shard in shards], partial(_load, data, shards, folder), order)


def _load(data: Path, shards: Sequence[Shard], folder: Path, number: int) -> list[Latent]:
    shard = shards[number]
    latents = load_file(folder / f"{Path(shard.shard).stem}.safetensors")["latents"]
    pictures = read_verified(data, shard)
    return [Latent(latent, picture.caption) for latent, picture in zip(latents, pictures, strict=True)]
