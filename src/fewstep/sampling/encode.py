"""Encodes a data set once, for every method that trains on real pictures.

The folder holds one file per shard of the data set, so a part of it is made and found again by itself.
"""

import os
from collections.abc import Mapping
from pathlib import Path

import torch

from fewstep.artifacts.manifest import Manifest
from fewstep.artifacts.workspace import Workspace
from fewstep.backbones.prompts import encode_distinct
from fewstep.backbones.protocol import Backbone
from fewstep.core.errors import UserError
from fewstep.core.files import whole_folder
from fewstep.core.hardware import autocast, device
from fewstep.core.progress import progress
from fewstep.data.latents import latents_of
from fewstep.data.prompted import save_prompted
from fewstep.data.shards import read_index, read_verified


def encode_split(
    out: Path,
    backbone: Backbone,
    data: Path,
    split: str,
    dtype: str,
    work: Workspace,
    inputs: Mapping[str, Path],
) -> None:
    """Encode every shard of a split into `out`; work: keeps finished shards until all are.

    dtype: of latents and conditions on disk. Each distinct caption of a shard is encoded once.
    """
    index = read_index(data)
    demand_resolution(backbone, index.resolution)
    shards = index.splits[split]
    files = [f"{Path(shard.shard).stem}.safetensors" for shard in shards]
    done = 0
    with progress(f"encode_data {split}", sum(shard.samples for shard in shards)) as report:
        for shard, file in zip(shards, files, strict=True):
            if not (work.folder / file).exists():
                pictures = read_verified(data, shard)
                latents = latents_of(pictures, backbone.encode)
                table, row = encode_distinct(backbone, [picture.caption for picture in pictures])
                save_prompted(work.folder / file, latents, row, table, dtype, {})
            done += shard.samples
            report(done)
    with whole_folder(out) as staging:
        for file in files:
            os.link(work.folder / file, staging / file)
        facts = {
            "split": split,
            "dtype": dtype,
            "counts": [shard.samples for shard in shards],
            "files": files,
        }
        Manifest.seal(staging, "encoded", facts | work.metadata, inputs)


@torch.no_grad()
def demand_resolution(backbone: Backbone, resolution: int) -> None:
    """Encode one gray image. Raises UserError where the teacher's latents have another shape than its."""
    with autocast():
        latent = backbone.encode(torch.zeros(1, 3, resolution, resolution, device=device()))
    if latent.shape[1:] != backbone.latent_shape:
        raise UserError(
            f"params.yaml: data.resolution: images of {resolution} are latents of {latent.shape[-1]}, this "
            f"teacher's are of {backbone.latent_shape[-1]}"
        )
