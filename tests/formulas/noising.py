"""Training points on a time grid."""

from types import ModuleType

import numpy as np
import torch

from fewstep.core.keyed import Key
from fewstep.diffusion.schedules import Cosine
from fewstep.students import noising
from tests.formulas.common import BATCH, SIZE, context, samples

MODULE = noising


def check(module: ModuleType) -> None:
    """`x_t = alpha x_0 + sigma eps` at `t = (i + 1) / steps`, i uniform, eps fresh."""
    pairs, _ = samples()
    points = module.noised(context(), Cosine(), range(BATCH), 3)
    i = np.floor(Key(0, "model/step").uniform(range(BATCH))[:, 0] * 3)
    eps = Key(0, "model/noise").normal(range(BATCH), (SIZE,)).astype(np.float64)
    angle = np.pi / 2 * (i[:, None] + 1) / 3
    assert points.i.tolist() == i.tolist() and torch.equal(
        points.conditions["scale"], pairs.conditions["scale"]
    )
    expected = np.cos(angle) * pairs.x_0.numpy() + np.sin(angle) * eps
    assert np.allclose(points.x_t.numpy(), expected, atol=1e-12)


MUTATIONS = [
    ("positions, (i + 1) / steps)", "positions, i / steps + 0.1)"),
    ("(uniform * steps).floor()", "(uniform * steps).round() * 0.9"),
    ("add_noise(path, x_0, eps, t)", "add_noise(path, eps, x_0, t)"),
    ("add_noise(path, x_0, eps, t)", "add_noise(path, x_0, eps, t / 2)"),
    ('context.key("noise")', 'context.key("other")'),
    ('context.key("step")', 'context.key("other")'),
]  # fmt: skip
