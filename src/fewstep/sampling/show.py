"""Draws an image or a grid with any model of the chain, for a person to look at."""

from collections.abc import Sequence
from pathlib import Path

import torch
from torchvision.utils import save_image

from fewstep.artifacts.manifest import NAME
from fewstep.backbones.prompts import encode_distinct, gather
from fewstep.config.base import PARAMS, read
from fewstep.config.sampling import SamplingConfig
from fewstep.core.errors import UserError
from fewstep.core.files import read_json, whole_file
from fewstep.core.hardware import deterministic, device
from fewstep.core.keyed import Key
from fewstep.core.paths import TEACHER
from fewstep.core.text import normalised
from fewstep.data.noise import fresh_noise, noise_of
from fewstep.sampling.draw import frozen_sampler
from fewstep.sampling.frozen import frozen_backbone


def save_grid(
    model: Path,
    prompts: Sequence[str],
    out: Path,
    *,
    steps: int | None = None,
    seed: int = 0,
    count: int = 1,
    guidance: float | None = None,
    clip: float | None = None,
    enlarge: int = 1,
) -> None:
    """Write a PNG: one row per prompt, `count` columns; column j of every row starts from noise j of `seed`.

    model: an artifact; its teacher is `teacher` beside it. steps: None for the count it was made for.
    Raises UserError when the artifact is incomplete, or when no step count is given and the model has none.
    """
    deterministic()
    teacher = model if read_json(model / NAME).get("kind") == "teacher" else model.parent / TEACHER.name
    backbone = frozen_backbone(teacher)
    sampling = read(SamplingConfig, "sampling") if PARAMS.exists() else SamplingConfig()
    if guidance is not None:
        sampling = sampling.model_copy(update={"guidance": guidance})
    sampler = frozen_sampler(model, backbone, sampling, clip)
    opened = sampler.model
    steps = steps or opened.steps or (sampling.steps if opened.sampling.follows_params else None)
    if steps is None:
        raise UserError(f"{model}: runs at any number of steps; say how many with --steps")
    texts = [normalised(prompt) for prompt in prompts for _ in range(count)]
    conditions, row = encode_distinct(backbone, texts)
    key, columns = Key(seed, "sample"), [*range(count)] * len(prompts)
    noise = noise_of(key, columns, backbone.latent_shape).to(device())
    fresh = fresh_noise(key, columns, backbone.latent_shape, device())
    images = sampler.images(gather(conditions, row), noise, steps, fresh)
    shown = torch.nn.functional.interpolate(images.cpu(), scale_factor=enlarge, mode="nearest")
    padding = 2 if len(shown) > 1 else 0
    with whole_file(out) as staging:
        save_image(shown, staging, "png", nrow=count, padding=padding, normalize=True, value_range=(-1, 1))
