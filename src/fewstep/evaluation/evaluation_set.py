"""What every model is measured on: one set of prompts, noises and real pictures, fixed once.

The folder: `prompts.json` (prompts, their labels, the noises' indices), `reference.safetensors` (features
of real held-out pictures), `teacher.safetensors` (the teacher's pictures at its full step count, and
their features), `grid-real.png` (the real pictures of the first prompts).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from fewstep.artifacts.folder import read_json, whole_folder, write_json
from fewstep.artifacts.manifest import Manifest
from fewstep.backbones.prompts import encode_distinct, picked
from fewstep.config.evaluate import EvaluationSetConfig
from fewstep.data.noise import noise_of
from fewstep.data.pixels import from_uint8, picture_batch, to_uint8
from fewstep.data.shards import Picture, open_pictures
from fewstep.data.stream import Stream
from fewstep.errors import UserError
from fewstep.evaluation.frechet import demand_enough
from fewstep.evaluation.grid import write_strip
from fewstep.features.network import FeatureNetwork
from fewstep.hardware import computing, device, in_parts, pictures_at_once
from fewstep.keyed import Key
from fewstep.progress import progress
from fewstep.sampling.draw import Sampler


@dataclass(frozen=True)
class Prompts:
    """Prompts with their labels (None for unlabelled data); picture i is drawn from noise i."""

    prompts: Sequence[str]
    labels: Sequence[Mapping[str, str] | None]
    noise: Key

    def __len__(self) -> int:
        return len(self.prompts)


@dataclass(frozen=True)
class EvaluationSet:
    """What `load` reads.

    reference: features of real pictures `[R, D]`. teacher: its pictures, uint8 `[N, H, W, 3]`, and features
    `[N, D]`. grid: pictures per row of the report.
    """

    prompts: Prompts
    reference: Tensor
    teacher: Tensor
    teacher_features: Tensor
    grid: int


def make(
    config: EvaluationSetConfig, data: Path, teacher: Sampler, features: FeatureNetwork, seed: int
) -> tuple[EvaluationSet, Tensor]:
    """Draw the set. Returns it and the real pictures of the first prompts, uint8 `[G, H, W, 3]`."""
    held_out = open_pictures(data, "heldout", Key(seed, "evaluation/prompts"))
    chosen = held_out.rows(range(config.pictures))
    prompts = Prompts([p.caption for p in chosen], [p.labels for p in chosen], Key(seed, "evaluation/noise"))
    grid = torch.stack([torch.from_numpy(p.pixels) for p in chosen[: config.grid]])
    demand_resolution(teacher, grid.shape[1])
    real = distinct(held_out, config.reference)
    (width,) = features_of(features, picture_batch(real[:1])).shape[1:]
    demand_enough(config.pictures, len(real), width)
    reference = torch.cat(
        [features_of(features, picture_batch(some)) for some in in_parts(real, pictures_at_once())]
    )
    pictures = draw(teacher, prompts, teacher.sampling.steps)
    made = EvaluationSet(prompts, reference, pictures, features_of_uint8(features, pictures), config.grid)
    return made, grid


@torch.no_grad()
def demand_resolution(teacher: Sampler, resolution: int) -> None:
    """Decode one latent. Raises UserError where the teacher's images have another side than the data's."""
    backbone = teacher.backbone
    with computing():
        drawn = backbone.decode(torch.zeros(1, *backbone.latent_shape, device=device())).shape[-1]
    if drawn != resolution:
        raise UserError(
            f"params.yaml: data.resolution = {resolution}: this teacher draws at {drawn}; set it so"
        )


def distinct(images: Stream[Picture], count: int) -> list[Picture]:
    """The first `count` images of an epoch, each once; fewer when there are fewer.

    Captions of one image after the first have its key with `-1`, `-2` ... behind it.
    """
    found: dict[str, Picture] = {}
    for position in range(images.total):
        (row,) = images.rows([position])
        found.setdefault(row.key.partition("-")[0], row)
        if len(found) == count:
            break
    return list(found.values())


def draw(sampler: Sampler, prompts: Prompts, steps: int) -> Tensor:
    """One picture per prompt, from its own noise, as uint8 `[N, H, W, 3]`: what a PNG would hold."""
    conditions, row = encode_distinct(sampler.backbone, prompts.prompts)
    size, parts = pictures_at_once(), []
    with progress(f"{sampler.model.name}, {steps} steps", len(prompts)) as report:
        for start in range(0, len(prompts), size):
            rows = row[start : start + size]
            indices = range(start, start + len(rows))
            noise = noise_of(prompts.noise, indices, sampler.backbone.latent_shape).to(device())
            parts.append(to_uint8(sampler.pictures(picked(conditions, rows), noise, steps)).cpu())
            report(start + len(rows))
    return torch.cat(parts)


@torch.no_grad()
def features_of(network: FeatureNetwork, pictures: Tensor) -> Tensor:
    """Features `[B, D]` of pictures `[B, 3, H, W]` in [-1, 1], on the CPU."""
    return network.features(pictures.to(device())).float().cpu()


def features_of_uint8(network: FeatureNetwork, pixels: Tensor) -> Tensor:
    """The same for uint8 `[N, H, W, 3]`, in batches."""
    parts = torch.split(pixels, pictures_at_once())
    return torch.cat([features_of(network, from_uint8(part)) for part in parts])


def save(
    made: EvaluationSet, grid: Tensor, out: Path, made_from: Mapping[str, Path], teacher_steps: int
) -> None:
    """Write the folder."""
    with whole_folder(out) as staging:
        write_json(
            staging / "prompts.json",
            {
                "prompts": list(made.prompts.prompts),
                "labels": list(made.prompts.labels),
                "noise": list(range(len(made.prompts))),
            },
        )
        save_file({"features": made.reference}, staging / "reference.safetensors")
        save_file(
            {"pictures": made.teacher, "features": made.teacher_features}, staging / "teacher.safetensors"
        )
        write_strip(staging / "grid-real.png", grid)
        facts = {
            "noise": {"seed": made.prompts.noise.seed, "stream": made.prompts.noise.stream},
            "grid": made.grid,
            "teacher_steps": teacher_steps,
        }
        Manifest.seal(staging, "evaluation_set", facts, made_from)


def load(folder: Path) -> EvaluationSet:
    """Read the folder. Raises UserError when it is not whole."""
    facts = Manifest.open(folder, "evaluation_set").facts
    listed = read_json(folder / "prompts.json")
    teacher = load_file(folder / "teacher.safetensors")
    return EvaluationSet(
        Prompts(listed["prompts"], listed["labels"], Key(**facts["noise"])),
        load_file(folder / "reference.safetensors")["features"],
        teacher["pictures"],
        teacher["features"],
        facts["grid"],
    )
