"""The losses of the method `dmd2`."""

from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch

from fewstep.methods import dmd2
from tests.formulas.common_scores import (
    FAKE,
    STUDENT,
    UNCONDITIONAL,
    WIDE,
    X_0,
    cosine,
    drawn,
    exit_of,
    losses,
    mean_of,
    method_of,
    student_input,
    uniform,
)

MODULE = dmd2
W = 2.5


def near(value: Any) -> Any:
    return pytest.approx(float(value), rel=1e-4, abs=1e-7)


def check(module: ModuleType) -> None:
    """Yin et al. 2024, eq. 7 and 8 of DMD, with each option alone; also the gradients in the networks."""
    for steps in (1, 2, 3):
        check_plain(module, steps)
    check_decoupled(module)
    check_gan(module)
    check_diversity(module)
    check_rules_on_weights(module)


def check_plain(module: ModuleType, steps: int) -> None:
    method = method_of(module, {"steps": steps, "guidance": W})
    x_t, _ = student_input(exit_of(steps), steps)
    terms, gradient = losses(method, "student")
    g = direction(STUDENT * x_t)
    assert terms == {"matching": near(0.5 * (g**2).mean())}
    assert gradient == near((g * x_t).mean())
    x, (_, u, _), eps = STUDENT * x_t, uniform("times", 3), drawn("fake")
    alpha, sigma = cosine(u)
    x_tau = alpha * x + sigma * eps
    error = (FAKE + WIDE) * x_tau - x
    terms, gradient = losses(method, "fake")
    assert terms == {"denoising": near((error**2).mean())} and gradient == near((2 * error * x_tau).mean())


def direction(x: np.ndarray) -> np.ndarray:
    """`(D_F - D_w) / mean|x - D_w|` at the first time of the batch."""
    u, eps = uniform("times", 3)[0], drawn("student")
    alpha, sigma = cosine(0.02 + 0.96 * u)
    x_tau = alpha * x + sigma * eps
    real = (UNCONDITIONAL + W * (WIDE - UNCONDITIONAL)) * x_tau
    return ((FAKE + WIDE) * x_tau - real) / mean_of(x - real)


def check_decoupled(module: ModuleType) -> None:
    method = method_of(module, {"steps": 2, "guidance": W, "decoupled": True})
    step = next(step for step in range(20) if exit_of(2, step) == 1)
    x_t, t = student_input(1, 2)
    x, (u, _, v), eps = STUDENT * x_t, uniform("times", 3), drawn("student")
    (alpha, sigma), (alpha_1, sigma_1) = cosine(0.02 + 0.96 * u), cosine(v * t)
    x_tau, x_cleaner = alpha * x + sigma * eps, alpha_1 * x + sigma_1 * eps
    matching = FAKE * x_tau / np.maximum(mean_of(x - WIDE * x_tau), 0.1)
    beyond = (W - 1) * (WIDE - UNCONDITIONAL) * x_cleaner / np.maximum(mean_of(x - WIDE * x_cleaner), 0.1)
    terms, gradient = losses(method, "student", step)
    assert terms == {"matching": near(0.5 * ((matching - beyond) ** 2).mean())}
    assert gradient == near(((matching - beyond) * x_t).mean())


def check_gan(module: ModuleType) -> None:
    x_t, _ = student_input(0, 1)
    x, (u, u_fake, _) = STUDENT * x_t, uniform("times", 3)
    alpha, sigma = cosine(0.02 + 0.96 * u)
    logits = ((FAKE + WIDE) * (alpha * x + sigma * drawn("student"))).mean(1, keepdims=True)
    ratio = np.exp(logits.mean((1, 2, 3), keepdims=True)).clip(0.1, 20)
    for divergence, h in {
        "reverse_kl": 1.0,
        "forward_kl": ratio,
        "jensen_shannon": ratio / (ratio + 1),
    }.items():
        values = {"weight": 0.5, "critic_weight": 0.25, "divergence": divergence}
        method = method_of(module, {"guidance": W, "gan": values})
        method.head = lambda features: features.mean(1, keepdim=True)
        terms, _ = losses(method, "student")
        assert terms["adversarial"] == near(0.5 * np.logaddexp(0, -logits).mean())
        assert terms["matching"] == near(0.5 * ((h * direction(x)) ** 2).mean())
        alpha_f, sigma_f = cosine(u_fake)
        real, fake = (((FAKE + WIDE) * (alpha_f * z + sigma_f * drawn("fake"))).mean(1) for z in (X_0, x))
        critic = 0.25 * (np.logaddexp(0, -real).mean() + np.logaddexp(0, fake).mean())
        assert losses(method, "fake")[0]["critic"] == near(critic)


def check_diversity(module: ModuleType) -> None:
    """DP-DMD on the cosine path: DDIM from noise to time 1/3 of the teacher, one step of the student."""
    values = {"weight": 0.5, "steps": 2, "of": 3}
    method = method_of(module, {"steps": 2, "guidance": W, "diversity": values})
    noise = drawn("noise/0")

    def step(x: np.ndarray, k: Any, t: float, s: float) -> np.ndarray:
        (alpha, sigma), (alpha_s, sigma_s) = cosine(t), cosine(s)
        return alpha_s * k * x + sigma_s * (x - alpha * k * x) / sigma

    k = UNCONDITIONAL + W * (WIDE - UNCONDITIONAL)
    z = step(step(noise, k, 1.0, 2 / 3), k, 2 / 3, 1 / 3)
    error = (step(noise, STUDENT, 1.0, 1 / 3) - z) / (2 / 3)
    assert losses(method, "student")[0]["diversity"] == near(0.5 * (error**2).mean())


def check_rules_on_weights(module: ModuleType) -> None:
    """IDA mixes the student into the fake after the student's update only; WGAN clips the head's weights."""
    own = torch.nn.Sequential()
    own.register_parameter("k", torch.nn.Parameter(torch.tensor(STUDENT, dtype=torch.float64)))
    method = method_of(module, {"ida": 0.2, "gan": {"loss": "wgan"}}, student=own)
    with torch.no_grad():
        method.updated("fake")
        assert float(method.fake.net.k) == FAKE
        assert max(float(weight.abs().max()) for weight in method.head.parameters()) == near(0.01)
        method.updated("student")
    assert float(method.fake.net.k) == near(0.8 * FAKE + 0.2 * STUDENT)


MUTATIONS = [
    ("(fake - real) / error_scale(x, real)\n", "(real - fake) / error_scale(x, real)\n"),
    ("(fake - real) / error_scale(x, real)\n", "(fake - real) / error_scale(x, fake)\n"),
    ("(fake - real) / error_scale(x, real)\n", "(fake - real)\n"),
    ("return (fake - real) /", "return (fake - fake) /"),
    ("batch.times[:, 2] * self", "batch.times[:, 1] * self"),
    ("self.scores.time_at(self.path.angle(batch.t))", "1.0"),
    ("self.config.scale) - 1", "self.config.scale)"),
    ("matching - beyond *", "matching + beyond *"),
    ("(with_prompt - without)", "(without - with_prompt)"),
    ("gradient * expand_like(weight, gradient)", "gradient"),
    ("config.gan.weight *", ""),
    ("gan.critic_weight *", ""),
    ("torch.cat([real, drawn])", "torch.cat([drawn, real])"),
    ("(batch.x, batch.real.double())", "(batch.real.double(), batch.x)"),
    ("config.diversity.weight * self", "self"),
    ("(x_s - z_s) / expand_like(1 - s, x_s)", "(x_s - z_s)"),
    ("[: diversity.steps + 1]", "[: diversity.steps]"),
    ("self.config.scale, self.config.per_sample)", "1.0, self.config.per_sample)"),
    ('group == "student" and', 'group == "fake" and'),
    ("own[name].to(weight), self.config.ida", "own[name].to(weight), 1 - self.config.ida"),
    ("clip_critic(self.config.gan.loss, self.head)", "pass"),
]  # fmt: skip
