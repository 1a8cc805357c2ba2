"""The losses of the method `decoder`."""

from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from fewstep.core.keyed import Key
from fewstep.diffusion.denoiser import Prediction
from fewstep.diffusion.schedules import RectifiedFlow
from fewstep.methods import decoder
from fewstep.training.method import Rows
from tests.formulas.common import BATCH, SIZE, TRAINING, Scaled, context, model, samples

MODULE = decoder
STEPS = 2
LARGE, SMALL = np.random.default_rng(0).standard_normal((2, 4, 4))
"""The teacher's and the small decoder multiply a latent with these patterns of pixels."""


class Tiny:
    """A small autoencoder: pixels `0.6 z SMALL`, latents `0.9` times the mean of the pixels."""

    def encode(self, images: Tensor) -> Any:
        return SimpleNamespace(latents=0.9 * images.mean((2, 3)))


def decode(z: Tensor, tiny: Any = None) -> Tensor:
    """`[B, 3]` as images `[B, 3, 4, 4]`."""
    pattern = torch.from_numpy(LARGE if tiny is None else 0.6 * SMALL)
    return z[..., None, None] * pattern


class Sampled:
    """Samples of the start: half the noise, plus that of its second step, plus the condition."""

    def __init__(self, start: Any, backbone: Any, sampling: Any) -> None:
        assert (start.name, sampling) == ("start", "the triplets'")

    def latents(self, conditions: Any, noise: Tensor, steps: int, fresh: Any) -> Tensor:
        assert steps == STEPS
        return 0.5 * noise + fresh(1) + conditions["scale"]


def check(module: ModuleType) -> None:
    """Song et al. 2024 (SDXS), section 3.1, with latents of the data and of the start model."""
    pairs, scale = samples()
    positions = range(BATCH)
    own = Key(0, "model/own").uniform(positions)[:, :1] < 0.25
    noise = Key(0, "model/sampled").normal(positions, (SIZE,)).astype(np.float64)
    fresh = Key(0, "model/sampled/step 1").normal(positions, (SIZE,)).astype(np.float64)
    z = np.where(own, 0.5 * noise + fresh + scale.numpy(), pairs.x_0.numpy())
    y, x = z[..., None, None] * LARGE, z[..., None, None] * 0.6 * SMALL

    def pooled(images: np.ndarray) -> np.ndarray:
        return images.reshape(BATCH, SIZE, 2, 2, 2, 2).mean((3, 5))

    judged, real = 2 * x + 0.1, 2 * y + 0.1
    values = {
        "from": "start",
        "own_share": 0.25,
        "downscale": 2,
        "adversarial_weight": 0.3,
        "from_step": 4,
        "encoder_weight": 0.7,
        "training": TRAINING,
    }
    terms = {
        "pixels": np.abs(pooled(x) - pooled(y)).mean(),
        "encoder": 0.7 * ((0.9 * y.mean((2, 3)) - z) ** 2).mean(),
        "adversarial": 0.3 * -judged.mean(),
    }
    critics = np.maximum(1 - real, 0).mean() + np.maximum(1 + judged, 0).mean()
    start = SimpleNamespace(name="start", steps=STEPS, parts={})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "tiny_autoencoder", lambda *_: (Tiny(), 4))
        patch.setattr(module, "patch_discriminator", lambda _: lambda images: 2 * images + 0.1)
        patch.setattr(module, "replace", replaced)
        patch.setattr(module, "Group", lambda modules, optimizer: modules)
        patch.setattr(module, "Sampler", Sampled)
        student = model(Scaled(0.3), Prediction.FLOW, RectifiedFlow())
        student.parts = {}
        backbone = SimpleNamespace(decode=decode, decoder=nn.Identity)
        method = module.METHOD(
            module.Config.model_validate(values),
            context(start, backbone=backbone, sampling="the triplets'"),
            student,
        )
        batch = method.prepare(method.batch(Rows(0, positions)))
    losses = {
        (step, group): {name: float(value) for name, value in method.losses(group, batch, step).items()}
        for step in (3, 4)
        for group in method.schedule(step)
    }
    near = {name: pytest.approx(value, rel=1e-5) for name, value in terms.items()}
    assert losses == {
        (3, "student"): {name: near[name] for name in ("pixels", "encoder")},
        (4, "student"): near,
        (4, "discriminator"): {"discriminator": pytest.approx(critics, rel=1e-5)},
    }


def replaced(value: Any, **changes: Any) -> Any:
    """`dataclasses.replace`, for a namespace as well."""
    return type(value)(**{**vars(value), **changes})


MUTATIONS = [
    ("uniform < self.config.own_share", "uniform >= self.config.own_share"),
    ("torch.where(expand_like(batch.own, z) > 0, sampled.to(z), z)", "sampled.to(z)"),
    ("sampler.latents(batch.conditions, batch.noise,", "sampler.latents(batch.conditions, batch.z,"),
    ("fresh_noise(sampled, positions", 'fresh_noise(context.key("other"), positions'),
    ("y=backbone.decode(z))", "y=backbone.decode(batch.z))"),
    ("decode(batch.z, self.tiny)", "decode(batch.z)"),
    ("avg_pool2d(y, config.downscale)).abs()", "avg_pool2d(y, config.downscale)).square()"),
    ("(avg_pool2d(x, config.downscale) - avg_pool2d(y, config.downscale))", "(x - y)"),
    ("generator(critic(x))", "generator(critic(y))"),
    ("config.adversarial_weight * generator", "generator"),
    ("(self.critic(y), self.critic(x.detach()))", "(self.critic(x.detach()), self.critic(y))"),
    ("step >= self.config.from_step", "step > self.config.from_step"),
    ("config.encoder_weight * mse_loss", "mse_loss"),
    ("tiny.encode(y).latents", "tiny.encode(x).latents"),
]  # fmt: skip
