"""The loss of the method `lcm`."""

from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest

from fewstep.core.keyed import Key
from fewstep.diffusion.denoiser import Prediction
from fewstep.diffusion.schedules import Cosine
from fewstep.methods import lcm
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

MODULE = lcm


def check(module: ModuleType) -> None:
    """Luo et al. 2023, algorithm 1, with one segment and with two (Wang et al. 2024) of 6 teacher steps.

    The student's estimate is `0.7 x + END e`, its average's `0.6 x + END e`, e the end of the segment.
    """
    pairs, scale = samples()
    x_0, grid, positions = pairs.x_0.numpy(), 6, range(BATCH)
    i = np.floor(Key(0, "model/step").uniform(positions)[:, :1] * grid)
    eps = Key(0, "model/noise").normal(positions, (SIZE,)).astype(np.float64)
    drawn = 1 + 3 * Key(0, "model/guidance").uniform(positions)[:, :1]  # of 1 to 4

    def ddim(x: np.ndarray, estimate: np.ndarray, t: np.ndarray, s: np.ndarray) -> np.ndarray:
        rest = (x - np.cos(np.pi * t / 2) * estimate) / np.sin(np.pi * t / 2)
        return np.cos(np.pi * s / 2) * estimate + np.sin(np.pi * s / 2) * rest

    cases: list[tuple[int, Any, bool]]
    cases = [(1, 1.0, False), (2, 2.5, False), (3, (1.0, 4.0), True), (1, (1.0, 4.0), False)]
    for segments, guidance, embeds in cases:
        values = {
            "method": "lcm",
            "from": "teacher",
            "training": TRAINING,
            "grid": grid,
            "segments": segments,
        }
        ranged = isinstance(guidance, tuple)
        config = module.Config.model_validate(values | {"guidance": guidance, "guidance_embedding": embeds})
        start = model(Scaled(0.0), Prediction.SAMPLE, Cosine(), takes_condition=True)
        student, average = (model(Scaled(k), Prediction.SAMPLE, Cosine()) for k in (0.7, 0.6))
        backbone = SimpleNamespace(network=lambda net, inputs, average=average: average.denoiser.network)
        method = module.METHOD(config, context(start, backbone=backbone), student)
        assert method.groups["student"].decays == {"target": 0.95}
        method.groups["student"].averages["target"] = {"net": average.net}
        terms = losses(method)
        k = UNCONDITIONAL + (drawn if ranged else guidance) * (scale.numpy() - UNCONDITIONAL)
        t, s, each = (i + 1) / grid, i / grid, grid // segments
        end = np.floor(i / each) * each / grid
        x_t = np.cos(np.pi * t / 2) * x_0 + np.sin(np.pi * t / 2) * eps
        x_s = ddim(x_t, k * x_t, t, s)
        with np.errstate(divide="ignore", invalid="ignore"):
            target = np.where(s == end, x_s, ddim(x_s, 0.6 * x_s + END * end, s, end))
        error = ddim(x_t, 0.7 * x_t + END * end, t, end) - target
        expected = (np.sqrt(error**2 + 1e-6) - 1e-3).mean()
        assert terms == {"consistency": pytest.approx(expected, rel=1e-5)}


MUTATIONS = [
    ("(batch.i + 1) / grid, batch.i / grid", "(batch.i + 1) / grid, (batch.i + 0.5) / grid"),
    ("(batch.i / each).floor() * each", "0 * batch.i"),
    ("asked(self.teacher, batch.x_t, t,", "asked(self.teacher, batch.x_t, s,"),
    ("self.landed(self.average, x_s", "self.landed(self.denoiser, x_s"),
    ("self.landed(self.average, x_s", "self.landed(self.average, batch.x_t"),
    ("torch.where(expand_like(s == end, x_s).bool(), x_s, reached)", "reached.nan_to_num()"),
    ("asked(denoise, x, t, end,", "asked(denoise, x, t, t,"),
    ("predicted - batch.target", "predicted - batch.x_t"),
    ("context, config.scale, config.per_sample)", "context, config.scale, False)"),
    ("context, config.scale, config.per_sample)", "context, 1.0, config.per_sample)"),
    ("self.config.guidance, rows", "1.0, rows"),
    ("HUBER = 1e-3", "HUBER = 1e-1"),
    ("rows.positions, self.config.grid)", "rows.positions, 5)"),
]  # fmt: skip
