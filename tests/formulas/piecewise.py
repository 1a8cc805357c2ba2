"""The loss of the method `piecewise`."""

from types import ModuleType
from typing import Any

import numpy as np
import pytest

from fewstep.core.keyed import Key
from fewstep.diffusion.denoiser import Prediction
from fewstep.diffusion.schedules import RectifiedFlow
from fewstep.methods import piecewise
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
from tests.formulas.common_flow import LAST, TABLE, flow_network, on_a_path

MODULE = piecewise


def check(module: ModuleType) -> None:
    """Yan et al. 2024, algorithm 1: `u = (x_start - x_end) / (start - end)` at a point of the line between.

    The noisiest window starts with pure noise, at the end of the network's schedule.
    """
    pairs, scale = samples()
    flow, positions = RectifiedFlow(), range(BATCH)
    r = Key(0, "model/times").uniform(positions, 2)
    eps = Key(0, "model/noise").normal(positions, (SIZE,)).astype(np.float64)
    drawn = 1 + 3 * Key(0, "model/guidance").uniform(positions)[:, :1]  # of 1 to 4
    cases: list[tuple[Any, int, str, int, Any, bool]] = [
        (flow, 4, "ddim", 3, 2.5, False),
        (TABLE, 2, "ddim", 2, (1.0, 4.0), True),
        (TABLE, 1, "ddim", 2, (1.0, 4.0), False),
        (flow, 3, "dpm_solver_pp_2m", 2, 1.0, False),
    ]
    for schedule, windows, solver, steps, guidance, embeds in cases:
        values = {"method": "piecewise", "from": "teacher", "training": TRAINING, "windows": windows}
        values |= {"guidance": guidance, "guidance_embedding": embeds}
        config = module.Config.model_validate(values | {"solver": solver, "solver_steps": steps})
        start = on_a_path(model(Scaled(0.0), Prediction.FLOW, schedule, takes_condition=True))
        made = on_a_path(model(Scaled(0.7, 3e-4), Prediction.FLOW, schedule))
        terms = losses(module.METHOD(config, context(start), module.student_of(config, made)))
        w = drawn if isinstance(guidance, tuple) else guidance
        v = flow_network(schedule, UNCONDITIONAL + w * (scale.numpy() - UNCONDITIONAL), 0.0, 0.0)
        k, last = np.floor(r[:, :1] * windows) + 1, LAST[schedule]
        begin, end = np.minimum(k / windows, last), (k - 1) / windows
        x = (1 - begin) * pairs.x_0.numpy() + begin * eps
        x = x_start = np.where(k == windows, np.hypot(last, 1 - last) * eps, x)
        t, before, lengths = begin, x, []
        for i in range(steps):
            s = begin + (end - begin) * (i + 1) / steps
            data = x - t * v(x, t, end)
            with np.errstate(divide="ignore", invalid="ignore"):
                lengths.append(np.log((1 - s) / s) - np.log((1 - t) / t))
                ahead = lengths[-1] / (2 * lengths[0]) if i and solver != "ddim" else 0 * s
            ahead = np.where(np.isfinite(lengths[-1]), np.nan_to_num(ahead), 0)
            target = data + ahead * (data - before)
            # The exact solution for a constant estimate of x_0, which for DDIM is Euler's step.
            x, t, before = target + s / t * (x - target), s, data
        u = (x_start - x) / (begin - end)
        t = begin + (end - begin) * r[:, 1:]
        error = flow_network(schedule, 0.7, 3e-4, END)(x_start + (t - begin) * u, t, end) - u
        assert terms == {"velocity": pytest.approx((error**2).mean(), rel=1e-5)}


MUTATIONS = [
    ("context.start.denoiser.on(self.path)", "context.start.denoiser"),
    ("self.config.windows).floor() + 1", "self.config.windows).floor()"),
    ("end, start = (k - 1) / self", "end, start = 0 * k / self"),
    ("x, start = self.denoiser.onto_schedule(x, start)", ""),
    ("x, start = self.denoiser.onto_schedule", "_, start = self.denoiser.onto_schedule"),
    ("torch.lerp(start, end, uniform[:, 1])", "torch.lerp(end, start, uniform[:, 1])"),
    ("torch.lerp(start, end, uniform[:, 1])", "start"),
    ("for i in range(steps + 1)", "for i in (0, steps)"),
    ("ODE_SOLVERS[self.config.solver]", "ODE_SOLVERS[Solver.DDIM]"),
    ("(batch.x - x_end) / expand_like(start - end, x_end)", "batch.x - x_end"),
    ("(batch.x - x_end)", "(x_end - batch.x)"),
    ("x_end + expand_like(batch.t - end, u) * u", "x_end + expand_like(batch.t, u) * u"),
    ("batch.x_t, batch.t, batch.end,", "batch.x_t, batch.end, batch.end,"),
    ("batch.x_t, batch.t, batch.end,", "batch.x_t, batch.t, batch.t,"),
    ("velocity - batch.u", "eps - batch.u"),
    ("error.square()", "error.abs()"),
    ("context, config.scale, config.per_sample)", "context, config.scale, False)"),
    ("context, config.scale, config.per_sample)", "context, 1.0, config.per_sample)"),
    ("self.context, self.config.guidance, rows", "self.context, 1.0, rows"),
]  # fmt: skip
