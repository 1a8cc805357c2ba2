"""The losses of the method `flash`."""

import itertools
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from fewstep.core.keyed import Key
from fewstep.diffusion.denoiser import Prediction
from fewstep.diffusion.schedules import Cosine
from fewstep.methods import flash
from fewstep.training.method import Rows
from tests.formulas.common import BATCH, SIZE, TRAINING, UNCONDITIONAL, Scaled, context, model, samples

MODULE = flash


class Maps(nn.Module):
    """A feature network whose only map is a vector of 3 channels."""

    channel_weights = None

    def maps(self, images: Tensor) -> list[Tensor]:
        return [images.reshape(len(images), 3, -1, 1)]


def check(module: ModuleType) -> None:
    """Chadebec et al. 2024: both groups' losses in all phases, with each distance, loss and solver.

    The guided teacher's estimate is `k x`, `k = u + w (c - u)`; the student's `0.7 x + 0.2 t`. The head's
    logits are `2 x + 0.1` of the teacher's raw output, which is `c x`.
    """
    pairs, scale = samples()
    z, c, grid, positions = pairs.x_0.numpy(), scale.numpy(), 8, range(BATCH)

    def normal(use: str) -> np.ndarray:
        return Key(0, f"model/{use}").normal(positions, (SIZE,)).astype(np.float64)

    def coefficients(t: Any) -> tuple[Any, Any]:
        return np.cos(np.pi * t / 2), np.sin(np.pi * t / 2)

    def noise(x: np.ndarray, t: Any, eps: np.ndarray) -> np.ndarray:
        alpha, sigma = coefficients(t)
        noisy: np.ndarray = alpha * x + sigma * eps
        return noisy

    def ddim(x: np.ndarray, k: np.ndarray, times: np.ndarray) -> np.ndarray:
        for t, s in itertools.pairwise(times):
            alpha, sigma = coefficients(t)
            x = noise(k * x, s, (x - alpha * k * x) / sigma)
        return x

    def multistep(x: np.ndarray, k: np.ndarray, times: np.ndarray) -> np.ndarray:
        """DPM-Solver++(2M), Lu et al. 2022, algorithm 2; the last step, to 0, gives the estimate."""
        log_snr = [np.log(np.divide(*coefficients(t))) for t in times[:-1]]
        estimates: list[np.ndarray] = []
        for n, (t, s) in enumerate(itertools.pairwise(times[:-1])):
            estimates.append(k * x)
            data, h = estimates[n], log_snr[n + 1] - log_snr[n]
            if n > 0:
                r = (log_snr[n] - log_snr[n - 1]) / h
                data = (1 + 1 / (2 * r)) * estimates[n] - estimates[n - 1] / (2 * r)
            (_, sigma), (alpha_s, sigma_s) = coefficients(t), coefficients(s)
            x = sigma_s / sigma * x - alpha_s * np.expm1(-h) * data
        return k * x

    uniform = Key(0, "model/times").uniform(positions, 3)
    w = 2 + 3 * Key(0, "model/guidance").uniform(positions)[:, :1]
    k = UNCONDITIONAL + w * (c - UNCONDITIONAL)
    modes = ([0, 0, 0.5, 0.5], [0.1, 0.3, 0.3, 0.3], [0.25] * 4, [0.4, 0.2, 0.2, 0.2], [0.7, 0.3])
    weights = ((1, 0, 0), (1, 0.3, 0.1), (1, 0.5, 0.2), (1, 0.7, 0.3), (2, 0.7, 0.3))
    at_noise = np.array([0.01, 0.25, 0.5, 0.75])[np.floor(uniform[:, 2:] * 4).astype(int)]
    pairs_of_losses: dict[str, tuple[Any, Any]] = {
        "lsgan": (lambda r, f: 0.5 * ((r - 1) ** 2 + f**2), lambda f: 0.5 * (f - 1) ** 2),
        "hinge": (lambda r, f: np.maximum(1 - r, 0) + np.maximum(1 + f, 0), lambda f: -f),
        "wgan": (lambda r, f: f - r, lambda f: -f),
        "non_saturating": (
            lambda r, f: np.logaddexp(0, -r) + np.logaddexp(0, f),
            lambda f: np.logaddexp(0, -f),
        ),
        "bce": (lambda r, f: np.logaddexp(0, -r) + np.logaddexp(0, f), lambda f: -np.logaddexp(0, f)),
    }

    def unit(x: np.ndarray) -> np.ndarray:
        normalized: np.ndarray = x / np.sqrt((x**2).sum(1, keepdims=True))
        return normalized

    distances: dict[str, Any] = {
        "l2": lambda f, y: ((f - y) ** 2).mean(),
        "l1": lambda f, y: np.abs(f - y).mean(),
        "perceptual": lambda f, y: ((unit(3 * f + 1) - unit(3 * y + 1)) ** 2).sum(1).mean(),
    }
    cases = [
        (0, "l2", "lsgan", "ddim", "data", 1.0),
        (1, "l1", "hinge", "dpm_solver_pp_2m", "teacher", 1.0),
        (2, "perceptual", "wgan", "ddim", "data", 3.0),
        (3, "l2", "non_saturating", "dpm_solver_pp_2m", "teacher", 1.0),
        (4, "l2", "bce", "ddim", "data", 1.0),  # not the paper's phases
    ]
    for number, distance, adversarial, solver, real, shift in cases:
        phase = {"modes": modes[4], "distance": 2.0, "matching": 0.7, "adversarial": 0.3}
        more: dict[str, Any] = {} if number < 4 else {"phases": [phase]}
        values = {"method": "flash", "from": "teacher", "training": TRAINING | {"steps": 20}, "grid": grid}
        values |= {"guidance": (2.0, 5.0), "distance": distance, "adversarial": adversarial, "crop": None}
        config = module.Config.model_validate(
            values | {"solver": solver, "real": real, "shift": shift} | more
        )
        start = model(Scaled(0.0), Prediction.SAMPLE, Cosine(), takes_condition=True)
        student = model(Scaled(0.7, slope=2e-4), Prediction.SAMPLE, Cosine())
        backbone = SimpleNamespace(decode=lambda x: 3 * x + 1, decoder=nn.Identity)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(module, "head_on", lambda *_: lambda features: 2 * features + 0.1)
            patch.setattr(module, "Group", lambda modules, optimizer: modules)
            patch.setattr(module, "open_maps", lambda context: Maps())
            method = module.METHOD(config, context(start, backbone=backbone, features="features"), student)
        step = 5 * min(number, 3)
        batch = method.prepare(method.batch(Rows(step, range(BATCH))))
        index, each = np.arange(grid), grid // len(modes[number])
        p = np.sum([m * np.exp(-((index - each * j) ** 2) / 0.5) for j, m in enumerate(modes[number])], 0)
        i = (uniform[:, :1] >= (p / p.sum()).cumsum()[None]).sum(1)
        even = np.linspace(1, 0, grid + 1)
        times = shift * even / (1 + (shift - 1) * even)
        x_t = np.where(
            i[:, None] == 0, normal("noise/start"), noise(z, times[i][:, None], normal("noise/start"))
        )
        solve = {"ddim": ddim, "dpm_solver_pp_2m": multistep}[solver]
        target = np.stack([solve(x_t[b], k[b], times[i[b] :]) for b in positions])
        f = 0.7 * x_t + 0.2 * times[i][:, None]
        x_tau = noise(f, uniform[:, 1:2], normal("noise/matching"))
        gradient = (0.7 * x_tau + 0.2 * uniform[:, 1:2] - k * x_tau) / (
            np.abs(f - k * x_tau).mean(1, keepdims=True) + 1e-5
        )
        logits = [
            2 * c * noise(x, at_noise, normal("noise/adversarial")) + 0.1
            for x in (z if real == "data" else target, f)
        ]
        of_critic, of_student = pairs_of_losses[adversarial]
        by_distance, by_matching, by_critic = weights[number]
        expected = {"distance": by_distance * distances[distance](f, target)}
        if number > 0:
            expected["matching"] = by_matching * (gradient**2).mean()
            expected["adversarial"] = by_critic * of_student(logits[1]).mean()
        terms = {name: float(value) for name, value in method.losses("student", batch, step).items()}
        assert terms == {name: pytest.approx(value, rel=1e-4) for name, value in expected.items()}
        critic = {name: float(value) for name, value in method.losses("discriminator", batch, step).items()}
        assert critic == {"discriminator": pytest.approx(of_critic(*logits).mean(), rel=1e-4)}
        if number > 0:  # the value of the matching term does not show the sign of its gradient
            output = torch.from_numpy(f).requires_grad_()
            (slope,) = torch.autograd.grad(method.matching(output, batch), output)
            assert np.allclose(slope.numpy(), 2 * gradient / gradient.size, rtol=1e-3, atol=1e-7)


MUTATIONS = [
    ("phase.distance * self.distance", "self.distance"),
    ("phase.matching * self.matching", "self.matching"),
    ("phase.adversarial * LOSSES", "LOSSES"),
    ("-((i - m * each) ** 2) / self.width", "-((i - m * each) ** 2) * self.width"),
    ("i, each = torch.arange(self.grid, dtype=torch.float64)", "i, each = 1 + torch.arange(self.grid)"),
    ("step * total < ", "step * total <= "),
    ("(fake - real)", "(real - fake)"),
    ("SMALLEST = 1e-5", "SMALLEST = 1e-2"),
    ("0.0) + SMALLEST", "1.0) + SMALLEST"),
    ("2 * distribution_matching", "distribution_matching"),
    ("asked(self.teacher, x_tau", "asked(self.denoiser, x_tau"),
    ("fake = asked(self.denoiser, x_tau, tau, end", "fake = asked(self.denoiser, x_tau, tau, tau"),
    ("batch.x_t.float(), batch.t, end", "batch.x_t.float(), end, end"),
    ("batch.eps[1]", "batch.eps[2]"),
    ("batch.eps[2], t", "batch.eps[0], t"),
    ("TIMES = (0.01, 0.25", "TIMES = (0.02, 0.25"),
    ('if config.real == "data" else', 'if config.real == "teacher" else'),
    ("self.head(real), self.head(drawn)", "self.head(drawn), self.head(real)"),
    ('if self.config.distance == "l2"', 'if self.config.distance == "l1"'),
    ("centre(target, crop), decode, features", "centre(target, crop), lambda x: x, features"),
    ("shifted(trailing(self.grid), self.shift)", "trailing(self.grid)"),
    ("context, config.scale, config.per_sample)", "context, config.scale, False)"),
    ("matching=0.5, adversarial=0.2", "matching=0.4, adversarial=0.2"),
    ("modes=(0.4, 0.2, 0.2, 0.2)", "modes=(0.2, 0.2, 0.2, 0.4)"),
]  # fmt: skip
