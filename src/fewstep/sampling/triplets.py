"""Draws a shard of teacher triplets batch by batch; each finished batch is saved at once."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from fewstep.artifacts.manifest import Manifest
from fewstep.artifacts.workspace import Workspace
from fewstep.backbones.prompts import encode_distinct, gather
from fewstep.config.triplets import TripletsConfig
from fewstep.core.errors import UserError
from fewstep.core.files import whole_file, whole_folder, write_json
from fewstep.core.hardware import deterministic, device, images_at_once
from fewstep.core.keyed import Key
from fewstep.core.processes import barrier, is_main_process, local_slice
from fewstep.core.progress import progress
from fewstep.core.text import normalised, read_text
from fewstep.data.noise import noise_key, noise_of
from fewstep.data.prompted import save_prompted
from fewstep.data.shards import open_images
from fewstep.data.stream import Stream
from fewstep.data.triplets import FILE
from fewstep.diffusion.denoiser import GUIDANCE
from fewstep.sampling.draw import Sampler


def write_triplets(
    out: Path,
    sampler: Sampler,
    config: TripletsConfig,
    shard: int,
    seed: int,
    work: Workspace,
    inputs: Mapping[str, Path],
) -> None:
    """One shard of triplets; each one's prompt, noise and guidance are keyed by its index.

    work: keeps finished batches until the shard is complete. inputs: those of the manifest. Each process
    draws its own batches; the main process joins them.
    """
    deterministic()
    backbone, first, count = sampler.backbone, shard * config.shard_size, config.shard_size
    indices = range(first, first + count)
    prompts = prompts_of(config.prompts, Key(seed, "triplets/prompts"), indices)
    conditions, row = encode_distinct(backbone, prompts)
    scales = guidance_of(config, Key(seed, "triplets/guidance"), indices)
    size = images_at_once()
    starts = range(0, count, size)
    with progress(f"triplets {out.name}", count) as report:
        for start in local_slice(starts):
            part = part_of(work.folder, first + start)
            if not part.exists():
                these = slice(start, start + size)
                noise = noise_of(noise_key(seed), indices[these], backbone.latent_shape).to(device())
                batch = gather(conditions, row[these])
                batch |= {name: value[these].to(device()) for name, value in scales.items()}
                latents = sampler.latents(batch, noise, sampler.sampling.steps)
                with whole_file(part) as staging:
                    save_file({"latents": latents.cpu()}, staging)
            report(min(start + size, count))
    barrier()
    if not is_main_process():
        return
    files = [part_of(work.folder, first + start) for start in starts]
    parts = [load_file(file)["latents"] for file in files]
    with whole_folder(out) as staging:
        save_prompted(staging / FILE, torch.cat(parts), row, conditions, config.dtype, scales)
        write_json(staging / "prompts.json", {"prompts": sorted(set(prompts))})
        metadata = {
            "first": first,
            "count": count,
            "noise": f"{noise_key(seed).seed}/{noise_key(seed).stream}",
            "sampling": sampler.sampling.model_dump(mode="json"),
            "guidance": config.guidance,
            "dtype": config.dtype,
        }
        Manifest.seal(staging, "triplets", metadata | work.metadata, inputs)
    for file in files:
        file.unlink()


def prompts_of(where: Path, key: Key, indices: Sequence[int]) -> list[str]:
    """The prompts of these triplets: captions of a data set, or lines of a text file, in keyed order.

    Raises UserError when the file cannot be read or has no line.
    """
    if where.is_dir():
        return [image.caption for image in open_images(where, "train", key).rows(indices)]
    try:
        lines = [prompt for line in read_text(where).split("\n") if (prompt := normalised(line))]
    except (OSError, UnicodeDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) else "not UTF-8; save it as UTF-8"
        raise UserError(f"params.yaml: triplets.prompts = {where}: cannot be read: {why}") from None
    if not lines:
        raise UserError(f"params.yaml: triplets.prompts = {where}: has no line; it needs one prompt on each")
    return Stream([len(lines)], lambda _: lines, key).rows(indices)


def guidance_of(config: TripletsConfig, key: Key, indices: Sequence[int]) -> dict[str, Tensor]:
    """Each triplet's own guidance scale `[n]`; empty where all have the scale of `sampling`."""
    if config.guidance is None:
        return {}
    low, high = config.guidance
    return {GUIDANCE: torch.from_numpy(low + (high - low) * key.uniform(indices)[:, 0]).float()}


def part_of(folder: Path, start: int) -> Path:
    """File of the finished batch whose first triplet has the index `start`."""
    return folder / f"latents-{start:08d}.safetensors"
