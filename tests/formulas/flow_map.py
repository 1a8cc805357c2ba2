"""The loss of the method `flow_map`."""

from types import ModuleType
from typing import Any

import numpy as np
import pytest

from fewstep.core.keyed import Key
from fewstep.diffusion.denoiser import Prediction
from fewstep.diffusion.schedules import RectifiedFlow
from fewstep.methods import flow_map
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

MODULE = flow_map


def check(module: ModuleType) -> None:
    """Geng et al. 2025, eq. 6: `u = v - (t - r) du/dt`; the tangent over its root mean square + 0.1.

    The student's velocity is `0.7 x + slope t + END r`, so that a difference of any width is its derivative,
    on the flow; on a table the difference is written out.
    """
    pairs, scale = samples()
    flow, h, slope, positions = RectifiedFlow(), 5e-3, 3e-4, range(BATCH)
    r = Key(0, "model/times").uniform(positions, 4)
    s = np.log(1 + r[:, :1] * (np.exp(4) - 1)) / 4
    eps = Key(0, "model/noise").normal(positions, (SIZE,)).astype(np.float64)
    drawn = 1 + 3 * Key(0, "model/guidance").uniform(positions)[:, :1]  # of 1 to 4
    cases: list[tuple[Any, str, Any, bool, str, int]] = [
        (flow, "central", 1.0, False, "uniform", 2),
        (flow, "jvp", 2.5, False, "u_shaped", 20),
        (flow, "central", (1.0, 4.0), True, "uniform", 20),
        (TABLE, "central", (1.0, 4.0), False, "u_shaped", 20),
    ]
    for schedule, derivative, guidance, embeds, times, step in cases:
        values = {"method": "flow_map", "from": "teacher", "training": TRAINING, "warmup_tangent": 8}
        values |= {"share_r_t": 0.3, "share_r_0": 0.2, "times": times, "derivative": derivative}
        config = module.Config.model_validate(values | {"guidance": guidance, "guidance_embedding": embeds})
        start = on_a_path(model(Scaled(0.0), Prediction.FLOW, schedule, takes_condition=True))
        made = on_a_path(model(Scaled(0.7, slope), Prediction.FLOW, schedule))
        terms = losses(module.METHOD(config, context(start), module.student_of(config, made)), step)
        t = r[:, :1] if times == "uniform" else np.where(r[:, 1:2] < 0.5, s, 1 - s)
        t = np.clip(t, 1e-5, 1 - 1e-5)
        x_t = (1 - t) * pairs.x_0.numpy() + t * eps
        # The same point with the schedule's noisiest time, and the scale that the path has there.
        beyond, t = t, np.minimum(t, LAST[schedule])
        x_t *= np.hypot(1 - t, t) / np.hypot(1 - beyond, beyond)
        end = np.where(r[:, 2:3] < 0.3, t, np.where(r[:, 2:3] < 0.5, 0, r[:, 3:] * t))
        w = drawn if isinstance(guidance, tuple) else guidance
        k = UNCONDITIONAL + w * (scale.numpy() - UNCONDITIONAL)
        v = flow_network(schedule, k, 0.0, 0.0)(x_t, t, end)
        u = flow_network(schedule, 0.7, slope, END)
        after, before = np.minimum(t + h, LAST[schedule]), np.maximum(t - h, end)
        there, back = (u(x_t + (at - t) * v, at, end) for at in (after, before))
        slopes = (there - back) / np.maximum(after - before, 1e-12)
        change = 0.7 * v + 1000 * slope if schedule == flow else slopes
        g = v - u(x_t, t, end) - min(step / 8, 1) * (t - end) * change
        g /= np.sqrt((g**2).mean(1, keepdims=True)) + 0.1
        assert terms == {"velocity": pytest.approx((g**2).mean(), rel=1e-4)}


MUTATIONS = [
    ("context.start.denoiser.on(self.denoiser.path)", "context.start.denoiser"),
    ("x_t, t = self.denoiser.onto_schedule(x_t, t)", ""),
    ("x_t, t = self.denoiser.onto_schedule(x_t, t)", "t = self.denoiser.onto_schedule(x_t, t)[1]"),
    ("uniform[:, 2], uniform[:, 3]", "uniform[:, 2], uniform[:, 2]"),
    ("kind < whole, 0.0, share * t", "kind < whole, share * t, 0.0"),
    ("share * t))", "share))"),
    ("self.context.key(\"times\")", "self.context.key(\"other\")"),
    ("asked(self.teacher, x_t, t, t,", "asked(self.teacher, x_t, r, r,"),
    ("asked(self.denoiser, x, at, r,", "asked(self.denoiser, x, at, at,"),
    ("asked(self.denoiser, x, at, r,", "asked(self.denoiser, x, t, r,"),
    ("expand_like(t - r, x_t) * change", "expand_like(t, x_t) * change"),
    ("u.detach() - grown * batch", "u.detach() + grown * batch"),
    ("min(step / warmup, 1.0)", "(step / warmup)"),
    ("min(step / warmup, 1.0)", "1.0"),
    (".square().mean(1).sqrt()", ".square().sum(1).sqrt()"),
    ("C = 0.1", "C = 0.0"),
    ("expand_like(s - t, x) * v", "expand_like(s - t, x) * x"),
    ("(x, t), (v, torch.ones_like(t))", "(x, t), (v, torch.zeros_like(t))"),
    ("(x, t), (v, torch.ones_like(t))", "(x, t), (x, torch.ones_like(t))"),
    ("(t + H).clamp(max=last)", "t + H"),
    ("H = 5e-3", "H = 5e-2"),
    ("context, config.scale, config.per_sample)", "context, config.scale, False)"),
    ("context, config.scale, config.per_sample)", "context, 1.0, config.per_sample)"),
    ("self.context, self.config.guidance, rows", "self.context, 1.0, rows"),
]  # fmt: skip
