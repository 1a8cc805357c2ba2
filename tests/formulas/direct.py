"""The loss of the method `direct`."""

from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
from torch import nn

from fewstep.diffusion.denoiser import Prediction
from fewstep.diffusion.schedules import RectifiedFlow
from fewstep.methods import direct
from tests.formulas.common import (
    TRAINING,
    Scaled,
    context,
    losses,
    model,
    samples,
)

MODULE = direct


def check(module: ModuleType) -> None:
    """`x_hat = eps - u(eps, 1)`; the perceptual phase adds pixels of a decoder `z -> 3 z`."""
    pairs, _ = samples()
    x_0, eps = pairs.x_0.numpy(), pairs.eps.numpy()
    error = eps - (0.3 * eps + 0.2) - x_0
    distances = {
        "l2": (error**2).mean(),
        "l1": np.abs(error).mean(),
        "log_l1": np.log(np.abs(error).mean(1) + 0.02).mean(),
    }
    for kind, expected in distances.items():
        values = {"method": "direct", "from": "teacher", "latent_loss": kind, "latent_weight": 0.5}
        more = {"pixel_weight": 0.25, "perceptual_from": 4, "training": TRAINING}
        config = module.Config.model_validate(values | more)
        student = model(Scaled(0.3, slope=2e-4), Prediction.FLOW, RectifiedFlow())
        backbone = SimpleNamespace(decode=lambda z: 3 * z, decoder=nn.Identity)
        method = module.Direct(config, context(backbone=backbone), student)
        latents = {"latents": pytest.approx(0.5 * expected, rel=1e-5)}
        pixels = {"pixels": pytest.approx(0.25 * 3 * np.abs(error).mean(), rel=1e-5)}
        assert losses(method, step=3) == latents
        assert losses(method, step=4) == latents | pixels


MUTATIONS = [
    ("t = torch.ones(", "t = torch.zeros("),
    ("self.denoiser, batch.eps,", "self.denoiser, batch.x_0,"),
    ("torch.zeros_like(t)", "t"),
    ("config.latent_weight * distance", "distance"),
    ("x_hat, batch.x_0)}", "x_hat, batch.eps)}"),
    ("step >= config.perceptual_from", "step > config.perceptual_from"),
    ("config.pixel_weight * (image", "(image"),
    ("x_hat, batch.x_0, backbone.decode", "x_hat, batch.eps, backbone.decode"),
    ("image = decode(x_hat)", "image = x_hat"),
    ("target = decode(x_0)", "target = x_0"),
    ('if kind == "l2"', 'if kind == "l1"'),
    ('if kind == "log_l1"', 'if kind == "l1"'),
    ("each + NEAR", "each"),
]  # fmt: skip
