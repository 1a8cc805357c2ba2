"""Base of the methods with a fake score."""

from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from fewstep.diffusion.denoiser import Denoiser, Estimate, Prediction
from fewstep.diffusion.schedules import Cosine
from fewstep.students import scores
from tests.formulas.common_scores import (
    BATCH,
    FAKE,
    STUDENT,
    WIDE,
    X_0,
    cosine,
    drawn,
    exit_of,
    losses,
    method_of,
    uniform,
)

MODULE = scores


def check(module: ModuleType) -> None:
    """Backward simulation, times and noise of both updates, and what the networks are."""

    class Plain(module.ScoreDistillation):  # type: ignore[name-defined, misc]
        def student_losses(self, x: Tensor, batch: Any) -> dict[str, Tensor]:
            x_tau, tau = self.noised(x, batch)
            return {"x": x.mean(), "x_tau": x_tau.square().mean(), "tau": tau.mean()}

    whole: Any = SimpleNamespace(Config=module.ScoreConfig, METHOD=Plain, student_of=module.few_step)
    for steps, trained in ((1, 0), (2, 1), (3, 1), (3, 2)):
        values = {"steps": steps, "first_time": 0.75, "earliest": 0.1, "latest": 0.7, "student_every": 3}
        method = method_of(whole, values)
        step = next(step for step in range(40) if exit_of(steps, step) == trained)
        x_t, times = drawn("noise/0"), 0.75 * (1 - np.arange(steps + 1) / steps)
        assert method.student.steps == steps
        assert method.student.sampling.grid(steps) == pytest.approx(times.tolist())
        for j in range(1, trained + 1):
            alpha, sigma = cosine(times[j])
            x_t = alpha * STUDENT * x_t + sigma * drawn(f"noise/{j}")
        x, (u, u_fake, _) = STUDENT * x_t, uniform("times", 3)
        (alpha, sigma), tau = cosine(0.1 + 0.6 * u), 0.1 + 0.6 * u
        x_tau = alpha * x + sigma * drawn("student")
        terms, gradient = losses(method, "student", step)
        expected = {"x": x.mean(), "x_tau": (x_tau**2).mean(), "tau": tau.mean()}
        assert terms == {name: pytest.approx(value, rel=1e-5, abs=1e-7) for name, value in expected.items()}
        assert gradient == pytest.approx((x_t * (1 + 2 * x_tau * alpha)).mean(), rel=1e-4)
        alpha, sigma = cosine(u_fake)
        error = (FAKE + WIDE) * (alpha * x + sigma * drawn("fake")) - x
        assert losses(method, "fake", step)[0] == {"denoising": pytest.approx((error**2).mean(), rel=1e-5)}
        assert [method.schedule(step) for step in range(4)] == [
            ("fake", "student"), ("fake",), ("fake",), ("fake", "student")
        ]  # fmt: skip
        assert method.frozen == (method.teacher.net,) and method.fake.net is not method.teacher.net
        assert all(weight.requires_grad for weight in method.fake.net.parameters())
        with torch.no_grad():
            estimate = method.real(
                torch.from_numpy(x_t), torch.full((BATCH,), 0.5), {"scale": torch.from_numpy(WIDE)}
            )
        assert np.allclose(estimate.x_0.numpy(), WIDE * x_t, atol=1e-6)
    check_prediction_error(module)


def check_prediction_error(module: ModuleType) -> None:
    """The error of each kind of prediction in terms of x_0 and eps."""
    x_0, eps = (torch.from_numpy(z) for z in (X_0, drawn("noise/0")))
    t = torch.linspace(0.1, 0.9, BATCH, dtype=torch.float64)
    alpha, sigma = (
        c.reshape(-1, 1, 1, 1) for c in (torch.cos(torch.pi * t / 2), torch.sin(torch.pi * t / 2))
    )
    errors = {
        Prediction.EPSILON: eps - x_0,
        Prediction.SAMPLE: x_0 - eps,
        Prediction.V: (alpha * eps - sigma * x_0) - (alpha * x_0 - sigma * eps),
        Prediction.FLOW: (eps - x_0) - (x_0 - eps),
    }
    for prediction, error in errors.items():
        denoiser = Denoiser(None, Cosine(), prediction, Cosine())  # type: ignore[arg-type]
        difference = module.prediction_error(denoiser, Estimate(x_0, eps), Estimate(eps, x_0), t)
        assert torch.allclose(difference, error)


MUTATIONS = [
    ("self.first_time * t", "t"),
    ("{config.steps: tuple(config.times)}", "{}"),
    ("step % self.config.student_every == 0", "step % self.config.student_every == 1"),
    ("[0, 0] * self.config.steps", "[0, 0] * 1"),
    ('key(f"scores/noise/{j}")', 'key("scores/noise/0")'),
    ("self.config.times[1:], batch.noise[1:]", "self.config.times[:-1], batch.noise[1:]"),
    ("x_t = add_noise(self.path, x_0, fresh, t)", "x_t = add_noise(self.path, x_t, fresh, t)"),
    ("tau, eps = batch.times[:, 1], batch.eps[1]", "tau, eps = batch.times[:, 0], batch.eps[1]"),
    ("tau, eps = batch.times[:, 1], batch.eps[1]", "tau, eps = batch.times[:, 1], batch.eps[0]"),
    ("low + (high - low)", "low + high"),
    ("batch.eps[0], tau), tau", "batch.eps[1], tau), tau"),
    ("return raw - wanted", "return raw"),
    ("net = to_train(teacher.net, more", "net = teacher.net.requires_grad_(True) or (teacher.net, more"),
]
