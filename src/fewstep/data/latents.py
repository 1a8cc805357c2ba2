"""Pictures encoded once: what trains a denoiser on real data."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from fewstep.core.files import read_json, whole_file, write_json
from fewstep.core.hardware import autocast, device, in_parts, pictures_at_once
from fewstep.core.keyed import Key
from fewstep.core.processes import barrier, local_slice
from fewstep.data.pixels import picture_batch
from fewstep.data.shards import Picture, read_index, read_verified
from fewstep.data.stream import Stream


@dataclass(frozen=True)
class Latent:
    """One encoded picture `[C, h, w]` and its caption."""

    latent: Tensor
    caption: str


def encode_shards(data: Path, split: str, encode: Callable[[Tensor], Tensor], folder: Path) -> None:
    """Encode every shard of a split once, into `folder`; shards already there are kept.

    Each process encodes its own; all wait for the last.
    """
    for shard in local_slice(read_index(data).splits[split]):
        target = folder / f"{Path(shard.shard).stem}.safetensors"
        if target.with_suffix(".json").exists():
            continue
        pictures = read_verified(data, shard)
        with whole_file(target) as staging:
            save_file({"latents": latents_of(pictures, encode)}, staging)
        write_json(target.with_suffix(".json"), {"captions": [picture.caption for picture in pictures]})
    barrier()


@torch.no_grad()
def latents_of(pictures: Sequence[Picture], encode: Callable[[Tensor], Tensor]) -> Tensor:
    """Pictures encoded `[N, C, h, w]`, on the host."""
    with autocast():
        parts = [
            encode(picture_batch(some).to(device())).cpu() for some in in_parts(pictures, pictures_at_once())
        ]
    return torch.cat(parts)


def open_latents(data: Path, split: str, folder: Path, order: Key) -> Stream[Latent]:
    """Encoded pictures of a split in keyed order."""
    shards = read_index(data).splits[split]
    stems = [Path(shard.shard).stem for shard in shards]
    return Stream([shard.samples for shard in shards], partial(_load, folder, stems), order)


def _load(folder: Path, stems: Sequence[str], number: int) -> list[Latent]:
    latents = load_file(folder / f"{stems[number]}.safetensors")["latents"]
    captions = read_json(folder / f"{stems[number]}.json")["captions"]
    return [Latent(latent, caption) for latent, caption in zip(latents, captions, strict=True)]
