"""The losses of the method `sid`."""

from types import ModuleType

import pytest

from fewstep.methods import sid
from tests.formulas.common_scores import (
    FAKE,
    STUDENT,
    UNCONDITIONAL,
    WIDE,
    cosine,
    drawn,
    losses,
    mean_of,
    method_of,
    student_input,
    uniform,
)

MODULE = sid
W = 2.5


def check(module: ModuleType) -> None:
    """Zhou et al. 2024, eq. 23; the fake is guided as the teacher is. The gradient is derived by hand."""
    for alpha in (1.0, 0.5):
        method = method_of(module, {"guidance": W, "alpha": alpha})
        x_t, _ = student_input(0, 1)
        x, (u, u_fake, _) = STUDENT * x_t, uniform("times", 3)
        a, s = cosine(0.02 + 0.96 * u)
        x_tau = a * x + s * drawn("student")
        k = UNCONDITIONAL + W * (WIDE - UNCONDITIONAL)
        difference, rest = -FAKE * x_tau, k * x_tau - x
        scale = mean_of(x - k * x_tau)
        # FAKE is added to both branches, so that guidance leaves it as it is; d x_tau / d x = a.
        slope = -FAKE * a * (rest - alpha * difference) + difference * (k * a - 1 + alpha * FAKE * a)
        terms, gradient = losses(method, "student")
        assert terms == {
            "identity": pytest.approx((difference * (rest - alpha * difference) / scale).mean(), rel=1e-5)
        }
        assert gradient == pytest.approx((slope / scale * x_t).mean(), rel=1e-4)
        a, s = cosine(u_fake)
        error = (k + FAKE) * (a * x + s * drawn("fake")) - x
        assert losses(method, "fake")[0] == {"denoising": pytest.approx((error**2).mean(), rel=1e-5)}


MUTATIONS = [
    ("guided_model(self.fake, context, config.scale, config.per_sample)", "self.fake.denoiser"),
    ("self.config.alpha", "0.7"),
    ("fake, real,", "real, fake,"),
    ("real = self.real(x_tau, tau,", "real = self.real(x_tau.detach(), tau,"),
    ("fake = self.fake_estimate(x_tau, tau,", "fake = self.fake_estimate(x_tau.detach(), tau,"),
]
