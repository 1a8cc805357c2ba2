"""Losses that match distributions."""

from types import ModuleType

import numpy as np
import pytest
import torch

from fewstep.losses import distribution_matching

MODULE = distribution_matching


def check(module: ModuleType) -> None:
    """Gradients, scales and weights by their formulas; numbers that are not finite are left out."""
    generator = np.random.default_rng(0)
    x, g, real = (torch.from_numpy(generator.standard_normal((4, 2, 3))) for _ in range(3))
    x.requires_grad_()
    broken = g.clone()
    broken[0, 0] = torch.tensor([torch.inf, -torch.inf, torch.nan])
    (gradient,) = torch.autograd.grad(module.distribution_matching(x, broken), x)
    kept = torch.where(broken.isfinite(), g, 0)
    assert torch.allclose(gradient, kept / x.numel()) and not torch.equal(kept, g)
    assert float(module.distribution_matching(x, g)) == pytest.approx(0.5 * float(g.square().mean()))
    scale = np.abs((x - real).detach().numpy()).mean((1, 2))
    assert module.error_scale(x, real)[:, 0, 0].tolist() == pytest.approx(scale.tolist())
    assert module.error_scale(x, x, 0.1).flatten().tolist() == [0.1] * 4
    assert not module.error_scale(x, real).requires_grad
    difference = real - g
    inner = (real - x.detach()) - 0.6 * difference
    expected = (difference * inner).numpy() / scale[:, None, None]
    assert float(module.score_identity(x, g, real, 0.6)) == pytest.approx(expected.mean())
    logit = torch.tensor([-1.0, 0.5, 9.0, -9.0], dtype=torch.float64)
    r = np.exp([-1, 0.5, np.log(20), np.log(0.1)])
    weights = {
        "reverse_kl": np.ones(4),
        "forward_kl": r,  # f = r log r
        "jensen_shannon": r**2 * (1 / r - 1 / (r + 1)),  # f = r log r - (r + 1) log((r + 1) / 2)
        "hellinger": r**2 * r**-1.5 / 4,  # f = 1 - sqrt(r)
    }
    for name, h in weights.items():
        assert module.divergence_weight(name, logit).tolist() == pytest.approx(h.tolist())


MUTATIONS = [
    ("(x - gradient", "(x + gradient"),
    (".nan_to_num(0.0, 0.0, 0.0)", ""),
    ("0.5 * (x - target)", "(x - target)"),
    ("(real - x) - alpha * difference", "(real - x) + alpha * difference"),
    ("product / error_scale(x, real)", "product / error_scale(x, fake)"),
    (".detach().abs()", ".abs()"),
    ("each.clamp(min=smallest)", "each"),
    ("log_ratio.exp().clamp(0.1, 20)", "log_ratio.exp()"),
    ('"forward_kl": r,', '"forward_kl": 1 / r,'),
    ("r / (r + 1)", "1 / (r + 1)"),
    ("r.sqrt() / 4", "r.sqrt()"),
]
