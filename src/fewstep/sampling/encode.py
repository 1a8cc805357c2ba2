"""Encodes a data set once, for every method that trains on real pictures.

The folder holds one file per shard of the data set, so a part of it is made and found again by itself.
"""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from fewstep.artifacts.folder import whole_file, whole_folder
from fewstep.artifacts.manifest import Manifest
from fewstep.backbones.base import Backbone
from fewstep.backbones.prompts import encode_distinct, prompt_batch
from fewstep.data.pixels import picture_batch
from fewstep.data.shards import Picture, read_index, read_verified
from fewstep.data.triplets import CONDITION
from fewstep.hardware import computing, device
from fewstep.progress import progress

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


def encode_split(
    out: Path,
    backbone: Backbone,
    data: Path,
    split: str,
    dtype: str,
    work: Path,
    made_from: Mapping[str, Path],
) -> None:
    """Encode every shard of a split into `out`; work: where finished shards wait for the rest.

    dtype: of latents and conditions on disk. Each distinct caption of a shard is encoded once.
    """
    shards = read_index(data).splits[split]
    files = [f"{Path(shard.shard).stem}.safetensors" for shard in shards]
    done = 0
    with progress(f"encode_data {split}", sum(shard.samples for shard in shards)) as report:
        for shard, file in zip(shards, files, strict=True):
            if not (work / file).exists():
                tensors = encode_pictures(backbone, read_verified(data, shard))
                small = {
                    name: value.to(DTYPES[dtype]) if value.is_floating_point() else value
                    for name, value in tensors.items()
                }
                with whole_file(work / file) as staging:
                    save_file(small, staging)
            done += shard.samples
            report(done)
    with whole_folder(out) as staging:
        for file in files:
            os.link(work / file, staging / file)
        facts = {
            "split": split,
            "dtype": dtype,
            "counts": [shard.samples for shard in shards],
            "files": files,
        }
        Manifest.seal(staging, "encoded", facts, made_from)


@torch.no_grad()
def encode_pictures(backbone: Backbone, pictures: Sequence[Picture]) -> dict[str, Tensor]:
    """Tensors of one shard: `latents [N, C, h, w]`, `prompt [N]`, `condition.* [P, ...]`."""
    size = prompt_batch()
    with computing():
        latents = [
            backbone.encode(picture_batch(pictures[i : i + size]).to(device())).cpu()
            for i in range(0, len(pictures), size)
        ]
    conditions, row = encode_distinct(backbone, [picture.caption for picture in pictures])
    table = {f"{CONDITION}{name}": value.float().cpu() for name, value in conditions.items()}
    return {"latents": torch.cat(latents).contiguous(), "prompt": row, **table}
