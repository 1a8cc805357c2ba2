"""The losses of the method `tdm`."""

from types import ModuleType
from typing import Any

import numpy as np
import pytest

from fewstep.methods import tdm
from tests.formulas.common_scores import (
    END,
    FAKE,
    STUDENT,
    UNCONDITIONAL,
    WIDE,
    cosine,
    drawn,
    exit_of,
    losses,
    mean_of,
    method_of,
    uniform,
)

MODULE = tdm
W = 2.5


def check(module: ModuleType) -> None:
    """Luo et al. 2025; the fake's target by Tweedie's formula, with the division by alpha_tau written out."""
    for steps, trained in ((1, 0), (3, 0), (3, 1), (3, 2)):
        method = method_of(module, {"steps": steps, "guidance": W})
        step = next(step for step in range(40) if exit_of(steps, step) == trained)
        x, times = drawn("noise/0"), 1 - np.arange(steps + 1) / steps
        for j in range(trained + 1):
            t, s, x_t = times[j], times[j + 1], x
            (alpha, sigma), (alpha_s, sigma_s) = cosine(t), cosine(s)
            x_hat = STUDENT * x_t + END * s
            x = alpha_s * x_hat + sigma_s * (x_t - alpha * x_hat) / sigma
        u, u_fake, _ = uniform("times", 3)

        def further(tau: Any, eps: np.ndarray, x: np.ndarray = x, s: float = s) -> tuple[Any, Any]:
            (alpha, sigma), (alpha_s, sigma_s) = cosine(tau), cosine(s)
            variance = sigma**2 - (alpha / alpha_s * sigma_s) ** 2
            return alpha / alpha_s * x + np.sqrt(variance) * eps, variance

        x_tau, _ = further(s + (0.02 + 0.96 * u) * (t - s), drawn("student"))
        k = UNCONDITIONAL + W * (WIDE - UNCONDITIONAL)
        difference = (FAKE + WIDE - k) * x_tau
        scale = mean_of(x_hat - k * x_tau)
        root = np.sqrt(difference**2 + 1e-6)
        terms, gradient = losses(method, "student", step)
        assert terms == {"matching": pytest.approx(((root - 1e-3) / scale).mean(), rel=1e-4)}
        assert gradient == pytest.approx((difference / root / scale * x_t).mean(), rel=1e-3)

        tau, eps = s + u_fake * (t - s), drawn("fake")
        x_tau, variance = further(tau, eps)
        alpha, sigma = cosine(tau)
        y = (x_tau - sigma**2 * eps / np.sqrt(variance)) / alpha
        weight = np.minimum((alpha / sigma) ** 2, 5) * variance / sigma**2
        expected = (weight * ((FAKE + WIDE) * x_tau - y) ** 2).mean()
        assert losses(method, "fake", step)[0] == {"denoising": pytest.approx(expected, rel=1e-4)}


MUTATIONS = [
    ("target = x + (real - fake).to(x)", "target = x - (real - fake).to(x)"),
    ("self.config.huber, error_scale(x, real.to(x))", "self.config.huber"),
    ("self.config.huber, error_scale(x, real.to(x))", "self.config.huber, error_scale(x, fake.to(x))"),
    ("self.config.huber,", "0.1,"),
    ("config.scale, config.per_sample)", "1.0, config.per_sample)"),
    ("batch.times[:, 0]) * (batch.t - batch.s)", "batch.times[:, 0])"),
    ("tau = batch.s + batch.times[:, 1]", "tau = batch.times[:, 1]"),
    ("clamp(max=LARGEST_SNR)", "clamp(max=4)"),
    ("further.variance / sigma.square()", "1"),
    ("further.x_tau.float(), tau", "batch.x.float(), tau"),
    ("v = sigma.square() - (r * sigma_s).square()", "v = sigma.square() - sigma_s.square()"),
    ("r = alpha / alpha_s", "r = alpha"),
    ("r * sigma_s.square() / v.sqrt()", "r * sigma_s.square() / v"),
    ("* eps) / expand_like(alpha_s, x_s)", "* eps)"),
    ("times[: trained + 1]", "times[: trained + 1][-2:]"),
]
