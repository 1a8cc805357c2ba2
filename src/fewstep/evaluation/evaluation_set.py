"""The evaluation set: the prompts, noise and real images that every model is evaluated on, fixed once."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from fewstep.backbones.prompts import encode_distinct, gather
from fewstep.config.evaluate import EvaluationSetConfig
from fewstep.core.errors import UserError
from fewstep.core.hardware import autocast, device, images_at_once, in_parts
from fewstep.core.keyed import Key
from fewstep.core.progress import progress
from fewstep.data.noise import fresh_noise, noise_of
from fewstep.data.pixels import image_batch, to_uint8
from fewstep.data.shards import ImageRecord, open_images
from fewstep.data.stream import Stream
from fewstep.diffusion.denoiser import Conditions
from fewstep.evaluation.copies import nearness_limit
from fewstep.evaluation.figures import Yardstick, figures
from fewstep.evaluation.frechet import demand_enough
from fewstep.evaluation.kernel import KERNELS
from fewstep.evaluation.observations import Observations, observe
from fewstep.evaluation.schema import Floor, Reference
from fewstep.features.attribute_classifier import AttributeClassifier
from fewstep.features.layout import layout
from fewstep.features.network import FeatureNetwork
from fewstep.sampling.draw import Sampler

POOL = 6
"""Held-out images searched for the floor, per prompt, where captions repeat."""


@dataclass(frozen=True)
class Prompts:
    """One prompt per image; image i is drawn from noise i.

    Those after the first `main` repeat earlier prompts, to measure the diversity per prompt.
    """

    prompts: Sequence[str]
    main: int
    noise: Key

    def __len__(self) -> int:
        return len(self.prompts)


@dataclass(frozen=True)
class EvaluationSet:
    """The evaluation set, as `load` reads it.

    teacher: its images, uint8 `[rows, H, W, 3]`; `teacher_seen`: their observations. grid: images per row of
    the report.
    """

    prompts: Prompts
    yardstick: Yardstick
    teacher: Tensor
    teacher_seen: Observations
    reference: Reference
    grid: int


def make(
    config: EvaluationSetConfig,
    data: Path,
    teacher: Sampler,
    network: FeatureNetwork,
    seed: int,
    draw_seed: int = 0,
) -> tuple[EvaluationSet, Tensor]:
    """Build the set. Returns it and the real images of the first prompts, uint8 `[G, H, W, 3]`.

    draw_seed: 0 in the chain; others select other prompts, noise and real images from the same held-out ones.
    """
    suffix = f"/{draw_seed}" if draw_seed else ""
    held_out = open_images(data, "heldout", Key(seed, f"evaluation/prompts{suffix}"))
    real, pool = held_out_images(held_out, config)
    count = config.pictures
    demand_resolution(teacher, len(real[0].pixels))
    (width,) = network.features(image_batch(real[:1]).to(device())).shape[1:]
    demand_enough(count, len(real), width)
    captions = [image.caption for image in real[:count]]
    extra, groups = grouped(captions, config.diversity.prompts, config.diversity.samples)
    prompts = Prompts([*captions, *extra], count, Key(seed, f"evaluation/noise{suffix}"))
    seen = look_at(real, network)
    training = training_layout(data, config.training, Key(seed, "evaluation/training"))
    yardstick = Yardstick(
        labels=[image.labels for image in real[:count]],
        groups=groups,
        real=seen.rows(range(count)),
        reference=seen.features,
        training=training,
        near=nearness_limit(seen.layout, training),
        hidden=network.config.hidden if isinstance(network, AttributeClassifier) else (),
        kernel=KERNELS[network.kernel],
    )
    encoded = encode_distinct(teacher.backbone, prompts.prompts)
    images = draw(teacher, prompts, encoded, teacher.sampling.steps)
    teacher_seen = observe(images, network, prompts.prompts)
    reference = Reference(
        floor=floor(prompts, pool, yardstick, network),
        teacher=figures(teacher_seen, yardstick),
        teacher_steps=teacher.sampling.steps,
    )
    made = EvaluationSet(prompts, yardstick, images, teacher_seen, reference, config.grid)
    return made, torch.stack([torch.from_numpy(image.pixels) for image in real[: config.grid]])


def held_out_images(
    held_out: Stream[ImageRecord], config: EvaluationSetConfig
) -> tuple[list[ImageRecord], list[ImageRecord]]:
    """The real images, the first of which supply the prompts, and further ones for the floor.

    Raises UserError when there are fewer held-out images than prompts.
    """
    wanted = max(config.pictures, config.reference)
    images = distinct(held_out, wanted + POOL * config.pictures)
    if len(images) < config.pictures:
        raise UserError(
            f"params.yaml: evaluation_set.pictures = {config.pictures}: there are {len(images)} held-out "
            "images; lower it or raise data.heldout"
        )
    # Where captions do not repeat, the floor cannot match them, and one further image per prompt suffices.
    repeated = len({image.caption for image in images[: config.pictures]}) < config.pictures
    return images[:wanted], images[wanted : None if repeated else wanted + config.pictures]


def grouped(captions: Sequence[str], prompts: int, samples: int) -> tuple[list[str], list[list[int]]]:
    """Prompts of the rows to be added, and a group of `samples` rows for each of up to `prompts` prompts."""
    rows: dict[str, list[int]] = {}
    for i, caption in enumerate(captions):
        rows.setdefault(caption, []).append(i)
    extra: list[str] = []
    groups = []
    for caption, indices in list(rows.items())[:prompts]:
        missing = max(samples - len(indices), 0)
        first = len(captions) + len(extra)
        groups.append([*indices[:samples], *range(first, first + missing)])
        extra += [caption] * missing
    return extra, groups


def floor(
    prompts: Prompts, pool: Sequence[ImageRecord], on: Yardstick, network: FeatureNetwork
) -> Floor | None:
    """The figures of real images in place of generated ones; None where too few are left.

    Where every prompt has a real image with its caption, a perfect sampler would have the same figures.
    """
    matched = match(prompts.prompts, pool)
    if len(matched) >= prompts.main:
        chosen = [pool[i] for i in matched]
        groups = on.groups if len(chosen) == len(prompts) else ()
        measured = figures(look_at(chosen, network), on, groups)
        return Floor(**dict(measured), pairing="caption")
    if len(pool) < prompts.main:
        return None
    others = pool[: prompts.main]
    unmatched = replace(on, labels=[image.labels for image in others])
    return Floor(**dict(figures(look_at(others, network), unmatched, ())), pairing="none")


def match(captions: Sequence[str], pool: Sequence[ImageRecord]) -> list[int]:
    """For each caption, in order, an unused image of the pool with it; ends at the first without one."""
    left: dict[str, list[int]] = {}
    for i in reversed(range(len(pool))):
        left.setdefault(pool[i].caption, []).append(i)
    indices = []
    for caption in captions:
        if not left.get(caption):
            break
        indices.append(left[caption].pop())
    return indices


@torch.no_grad()
def demand_resolution(teacher: Sampler, resolution: int) -> None:
    """Decode one latent. Raises UserError where its side differs from that of the data's images."""
    backbone = teacher.backbone
    with autocast():
        drawn = backbone.decode(torch.zeros(1, *backbone.latent_shape, device=device())).shape[-1]
    if drawn != resolution:
        raise UserError(
            f"params.yaml: data.resolution = {resolution}: this teacher draws at {drawn}; set it so"
        )


def distinct(images: Stream[ImageRecord], count: int) -> list[ImageRecord]:
    """The first `count` images of an epoch, each once; fewer when there are fewer.

    Further captions of an image are records whose keys are the image's followed by `-1`, `-2` ...
    """
    rows: dict[str, ImageRecord] = {}
    for position in range(images.total):
        (row,) = images.rows([position])
        rows.setdefault(row.key.partition("-")[0], row)
        if len(rows) == count:
            break
    return list(rows.values())


def look_at(real: Sequence[ImageRecord], network: FeatureNetwork) -> Observations:
    """Observations of real images."""
    pixels = torch.from_numpy(np.stack([image.pixels for image in real]))
    return observe(pixels, network, [image.caption for image in real])


def training_layout(data: Path, count: int, key: Key) -> Tensor:
    """Layout of up to `count` training images, `[T, 192]`."""
    images = open_images(data, "train", key)
    positions = range(min(count, images.total))
    return torch.cat([layout(image_batch(images.rows(few))) for few in in_parts(positions, images_at_once())])


def draw(sampler: Sampler, prompts: Prompts, encoded: tuple[Conditions, Tensor], steps: int) -> Tensor:
    """One image per prompt, from its own noise, as uint8 `[rows, H, W, 3]`, rounded as in a PNG.

    encoded: the prompts, by `encode_distinct`.
    """
    conditions, row = encoded
    size, parts = images_at_once(), []
    with progress(f"{sampler.model.name}, {steps} steps", len(prompts)) as report:
        for start in range(0, len(prompts), size):
            rows = row[start : start + size]
            indices = range(start, start + len(rows))
            noise = noise_of(prompts.noise, indices, sampler.backbone.latent_shape).to(device())
            fresh = fresh_noise(prompts.noise, indices, sampler.backbone.latent_shape, device())
            images = sampler.images(gather(conditions, rows), noise, steps, fresh)
            parts.append(to_uint8(images).cpu())
            report(start + len(rows))
    return torch.cat(parts)
