"""The loss of the method `halve`."""

from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch

from fewstep.core.keyed import Key
from fewstep.diffusion.denoiser import Prediction
from fewstep.diffusion.schedules import Cosine
from fewstep.methods import halve
from tests.formulas.common import (
    BATCH,
    END,
    SIZE,
    TRAINING,
    UNCONDITIONAL,
    Scaled,
    context,
    losses,
    model,
    samples,
)

MODULE = halve


def check(module: ModuleType) -> None:
    """Salimans & Ho 2022, algorithm 2 on the cosine schedule; the teacher's estimate is `k x`, the student's
    `0.7 x + END s`, s the end of its step. With guidance w, `k = u + w (c - u)`.
    """
    pairs, scale = samples()
    x_0, steps, positions = pairs.x_0.numpy(), 3, range(BATCH)
    i = np.floor(Key(0, "model/step").uniform(positions)[:, :1] * steps)
    eps = Key(0, "model/noise").normal(positions, (SIZE,)).astype(np.float64)

    def coefficients(t: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return np.cos(np.pi * t / 2), np.sin(np.pi * t / 2)

    def ddim(x: np.ndarray, k: np.ndarray, t: np.ndarray, s: np.ndarray) -> np.ndarray:
        (alpha, sigma), (alpha_s, sigma_s) = coefficients(t), coefficients(s)
        return alpha_s * k * x + sigma_s * (x - alpha * k * x) / sigma

    cases: list[tuple[str, Any]] = [("truncated_snr", 1.0), ("snr_plus_one", 1.0), ("truncated_snr", 2.5)]
    for weight, guidance in [*cases, ("truncated_snr", np.linspace(1, 5, BATCH)[:, None])]:
        own = isinstance(guidance, np.ndarray)  # each triplet's, for a student that takes it as an input
        values = {"from": "teacher", "steps": steps, "weight": weight, "training": TRAINING}
        config = module.Config.model_validate(
            values | ({"guidance_embedding": True} if own else {"guidance": guidance})
        )
        start = model(Scaled(0.0), Prediction.SAMPLE, Cosine(), takes_condition=True)
        student = model(Scaled(0.7), Prediction.SAMPLE, Cosine())
        inputs = context(start)
        if own:
            conditions = pairs.conditions | {"guidance": torch.from_numpy(guidance[:, 0])}
            inputs.clean_batch = lambda positions, conditions=conditions: (pairs.x_0, conditions)
        terms = losses(module.Halve(config, inputs, student))
        k = UNCONDITIONAL + guidance * (scale.numpy() - UNCONDITIONAL)
        t = (i + 1) / steps
        alpha, sigma = coefficients(t)
        x_t = alpha * x_0 + sigma * eps
        x_end = ddim(ddim(x_t, k, t, t - 0.5 / steps), k, t - 0.5 / steps, i / steps)
        alpha_end, sigma_end = coefficients(i / steps)
        target = (x_end - sigma_end / sigma * x_t) / (alpha_end - sigma_end / sigma * alpha)
        snr = (alpha / sigma) ** 2
        w = np.maximum(snr, 1) if weight == "truncated_snr" else snr + 1
        assert terms == {
            "x_0": pytest.approx((w * (0.7 * x_t + END * i / steps - target) ** 2).mean(), rel=1e-5)
        }


MUTATIONS = [
    ("t = (batch.i + 1) / self.config.steps", "t = (batch.i + 0.5) / self.config.steps"),
    ("end = batch.i / self.config.steps", "end = t"),
    ("estimate.x_0 - batch.target", "estimate.eps - batch.target"),
    ("expand_like(weight, error) * error.square()", "error.square()"),
    ("expand_like(weight, error) * error.square()", "expand_like(weight, error) * error.abs()"),
    ("self.teacher, batch.x_t, batch.i, self.config.steps", "self.teacher, batch.x_t, batch.i, 4"),
    ("config.guidance, config.guidance_embedding)", "1.0, config.guidance_embedding)"),
    ("config.guidance, config.guidance_embedding)", "config.guidance, False)"),
    ("self.path, rows.positions, self.config.steps)", "self.path, rows.positions, 4)"),
    ('"truncated_snr": truncated_snr', '"truncated_snr": snr_plus_one'),
    ('"snr_plus_one": snr_plus_one', '"snr_plus_one": truncated_snr'),
]  # fmt: skip
