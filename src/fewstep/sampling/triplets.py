"""Draws a shard of teacher triplets: batch by batch, each batch safe on disk once done."""

from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from fewstep.artifacts.folder import whole_file, whole_folder, write_json
from fewstep.artifacts.manifest import Manifest
from fewstep.backbones.prompts import encode_distinct, prompt_batch
from fewstep.data.shards import open_pictures
from fewstep.data.triplets import CONDITION, FILE, noise_key, noise_of
from fewstep.hardware import deterministic, device
from fewstep.keyed import Key
from fewstep.processes import is_main, own, wait
from fewstep.progress import progress
from fewstep.sampling.draw import Sampler


def write_triplets(
    out: Path,
    sampler: Sampler,
    data: Path,
    first: int,
    count: int,
    seed: int,
    work: Path,
    made_from: Mapping[str, Path],
) -> None:
    """Triplets `first ... first + count - 1`: prompt and noise of each are functions of (seed, index) alone.

    work: where finished batches wait for the shard to be whole. made_from: the manifest's inputs. Each
    process draws its own batches; the main one puts all together.
    """
    deterministic()
    backbone = sampler.backbone
    pictures = open_pictures(data, "train", Key(seed, "triplets/prompts"))
    prompts = [picture.caption for picture in pictures.rows(range(first, first + count))]
    conditions, row = encode_distinct(backbone, prompts)
    size = prompt_batch()
    starts = range(0, count, size)
    with progress(f"triplets {out.name}", count) as report:
        for start in own(starts):
            part = part_of(work, start)
            if not part.exists():
                rows = row[start : start + size]
                indices = range(first + start, first + start + len(rows))
                noise = noise_of(noise_key(seed), indices, backbone.latent_shape).to(device())
                batch = {name: value[rows.to(value.device)] for name, value in conditions.items()}
                latents = sampler.latents(batch, noise, sampler.sampling.steps)
                with whole_file(part) as staging:
                    save_file({"latents": latents.cpu()}, staging)
            report(min(start + size, count))
    wait()
    if not is_main():
        return
    parts = [load_file(part_of(work, start))["latents"] for start in starts]
    with whole_folder(out) as staging:
        table = {f"{CONDITION}{name}": value.float().cpu() for name, value in conditions.items()}
        save_file({"latents": torch.cat(parts), "prompt": row, **table}, staging / FILE)
        write_json(staging / "prompts.json", {"prompts": sorted(set(prompts))})
        facts = {
            "first": first,
            "count": count,
            "noise": f"{noise_key(seed).seed}/{noise_key(seed).stream}",
            "sampling": sampler.sampling.model_dump(mode="json"),
            "dtype": "float32",
        }
        Manifest.seal(staging, "triplets", facts, made_from)


def part_of(work: Path, start: int) -> Path:
    """Where the finished batch that begins at `start` waits."""
    return work / f"latents-{start:08d}.safetensors"
