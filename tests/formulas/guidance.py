"""Guidance of what a student learns from."""

from types import ModuleType

import numpy as np
import torch

from fewstep.core.keyed import Key
from fewstep.diffusion.denoiser import Prediction
from fewstep.diffusion.sampling import STUDENTS, TEACHERS
from fewstep.diffusion.schedules import Cosine
from fewstep.students import guidance
from tests.formulas.common import BATCH, UNCONDITIONAL, Scaled, context, model, samples

MODULE = guidance


def check(module: ModuleType) -> None:
    """`u + w (c - u)` where w is not 1 or each sample's own; a start with built-in guidance has no other."""
    pairs, scale = samples()
    own = torch.linspace(1, 5, BATCH, dtype=torch.float64)
    for by_scale, w, by_condition in [
        (True, 2.5, False),
        (True, 1.0, False),
        (True, 1.0, True),
        (False, 1.0, True),
    ]:
        start = model(Scaled(0.0), Prediction.SAMPLE, Cosine(), takes_condition=True)
        start.sampling = TEACHERS if by_scale else STUDENTS
        conditions = pairs.conditions | ({"guidance": own} if by_condition and by_scale else {})
        guided = module.guided_model(start, context(start), w, by_condition)
        assert (guided is start.denoiser) == (w == 1 and not (by_scale and by_condition))
        x_0 = guided(pairs.eps, torch.full((BATCH,), 0.5), conditions).x_0
        scales = own[:, None].numpy() if "guidance" in conditions else w
        k = UNCONDITIONAL + scales * (scale.numpy() - UNCONDITIONAL)
        assert np.allclose(x_0.numpy(), k * pairs.eps.numpy(), atol=1e-6)
    assert module.with_scales(pairs.conditions, context(), 3.0, range(BATCH)) is pairs.conditions
    with_scales = module.with_scales(pairs.conditions, context(), (2.0, 5.0), range(BATCH))
    drawn = 2 + 3 * Key(0, "model/guidance").uniform(range(BATCH))[:, 0]
    assert with_scales.keys() == {"scale", "guidance"} and np.allclose(with_scales["guidance"].numpy(), drawn)
    key, free = Key(0, "model/unconditional"), {"scale": torch.full((1, 1), UNCONDITIONAL)}
    some = module.partly_unconditional(with_scales, free, 0.3, key, range(BATCH))
    replaced = key.uniform(range(BATCH)) < 0.3
    assert 0 < replaced.sum() < BATCH and some["guidance"] is with_scales["guidance"]
    assert np.allclose(some["scale"].numpy(), np.where(replaced, UNCONDITIONAL, scale.numpy()))


MUTATIONS = [
    ("low + (high - low)", "high + (high - low)"),
    ("context.unconditional(), scale, applies)", "context.unconditional(), 1.0, applies)"),
    ("if scale != 1 or", "if"),
    ("or (by_scale and per_sample)", ""),
    ("(by_scale and per_sample)", "per_sample"),
    ("[:, 0] < share)", "[:, 0] > share)"),
    ("free[name].to(value), value)", "value, free[name].to(value))"),
]  # fmt: skip
