"""Encodes a data set to latents and conditions, once for all trainings on real images.

A folder holds one file per shard of the data set. Each file is written, and reused after an interruption, by
itself.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from fewstep.artifacts.manifest import Manifest
from fewstep.artifacts.workspace import Workspace
from fewstep.backbones.prompts import encode_distinct
from fewstep.backbones.protocol import Backbone
from fewstep.core.errors import UserError
from fewstep.core.files import link_or_copy, whole_folder
from fewstep.core.hardware import autocast, device, images_at_once, in_parts
from fewstep.core.processes import barrier, is_main_process, local_slice
from fewstep.core.progress import progress
from fewstep.data.pixels import image_batch
from fewstep.data.prompted import save_prompted
from fewstep.data.shards import ImageRecord, read_index, read_verified


def encode_split(
    out: Path,
    backbone: Backbone,
    data: Path,
    split: str,
    dtype: str,
    work: Workspace,
    inputs: Mapping[str, Path],
) -> None:
    """Encode every shard of a split into `out`; work: keeps finished shards until all are finished.

    dtype: of latents and conditions on disk. Each distinct caption of a shard is encoded once. Each process
    encodes its own shards; the main process puts them together.
    """
    index = read_index(data)
    demand_resolution(backbone, index.resolution)

    def save(file: Path, latents: Tensor, captions: Sequence[str]) -> None:
        table, row = encode_distinct(backbone, captions)
        save_prompted(file, latents, row, table, dtype, {})

    encode_shards(f"encode_data {split}", data, split, backbone.encode, work.folder, save)
    if not is_main_process():
        return
    shards = index.splits[split]
    files = [shard.file_of_latents for shard in shards]
    with whole_folder(out) as staging:
        for file in files:
            link_or_copy(work.folder / file, staging / file)
        metadata = {
            "split": split,
            "dtype": dtype,
            "counts": [shard.samples for shard in shards],
            "files": files,
        }
        Manifest.seal(staging, "encoded", metadata | work.metadata, inputs)


def encode_shards(
    name: str,
    data: Path,
    split: str,
    encode: Callable[[Tensor], Tensor],
    folder: Path,
    save: Callable[[Path, Tensor, Sequence[str]], None],
) -> None:
    """Write one file per shard of a split into `folder`; existing files are kept.

    name: of the progress bar. save(file, latents, captions): writes one file atomically. Each process encodes
    its own shards and then waits for the others.
    """
    shards = local_slice(read_index(data).splits[split])
    done = 0
    with progress(name, sum(shard.samples for shard in shards)) as report:
        for shard in shards:
            file = folder / shard.file_of_latents
            if not file.exists():
                images = read_verified(data, shard)
                save(file, latents_of(images, encode), [image.caption for image in images])
            done += shard.samples
            report(done)
    barrier()


@torch.no_grad()
def latents_of(images: Sequence[ImageRecord], encode: Callable[[Tensor], Tensor]) -> Tensor:
    """Latents `[N, C, h, w]` of images, on the host."""
    with autocast():
        parts = [encode(image_batch(some).to(device())).cpu() for some in in_parts(images, images_at_once())]
    return torch.cat(parts)


@torch.no_grad()
def demand_resolution(backbone: Backbone, resolution: int) -> None:
    """Encode one gray image. Raises UserError if its latent does not have the shape of the teacher's."""
    with autocast():
        latent = backbone.encode(torch.zeros(1, 3, resolution, resolution, device=device()))
    if latent.shape[1:] != backbone.latent_shape:
        raise UserError(
            f"params.yaml: data.resolution: images of {resolution} are latents of {latent.shape[-1]}, this "
            f"teacher's are of {backbone.latent_shape[-1]}"
        )
