"""Each method's losses against their formulas, written out anew; and mutations that must each be noticed.

The expected values come from numpy and the papers' equations alone. Randomness is drawn from the keys that a
method documents: `times`, `step` and `noise` of the model to be made.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from types import ModuleType, SimpleNamespace
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from fewstep.backbones.model import Model
from fewstep.core.keyed import Key
from fewstep.data.triplets import TripletBatch
from fewstep.diffusion.denoiser import END_TIME, Conditions, Denoiser, Prediction
from fewstep.diffusion.sampling import STUDENTS, TEACHERS
from fewstep.diffusion.schedules import Cosine, RectifiedFlow
from fewstep.methods import direct, halve, lcm, reflow, sdxs
from fewstep.students import guidance as guiding
from fewstep.students import noising
from fewstep.training.method import Rows

BATCH, SIZE = 64, 3
TRAINING = {"steps": 10, "batch_size": BATCH, "learning_rate": 1.0}
UNCONDITIONAL = 0.3
END = 0.1


class Scaled(nn.Module):
    """`scale x + slope time + END end`, the scale a condition where there is one; end: of the step."""

    def __init__(self, scale: float, slope: float = 0.0) -> None:
        super().__init__()
        self.scale, self.slope = scale, slope

    def forward(self, x: Tensor, time: Tensor, conditions: Conditions) -> Tensor:
        scale, end = conditions.get("scale", torch.tensor(self.scale)), conditions[END_TIME]
        return scale * x + self.slope * time[:, None] + END * end[:, None] / 1000


def model(net: nn.Module, prediction: Prediction, schedule: Any, takes_condition: bool = False) -> Any:
    """What a method uses of a model."""

    def network(x: Tensor, time: Tensor, conditions: Conditions) -> Tensor:
        if takes_condition:  # a teacher's, which knows no end
            return net(x, time, conditions | {END_TIME: torch.zeros_like(time)})
        return net(x, time, {END_TIME: conditions[END_TIME]})

    return SimpleNamespace(
        net=net,
        denoiser=Denoiser(network, schedule, prediction, schedule, () if takes_condition else (END_TIME,)),
        sampling=TEACHERS if takes_condition else STUDENTS,
    )


def samples() -> tuple[TripletBatch, Tensor]:
    """Triplets in float64, each with a condition of its own `[B, 1]`."""
    generator = torch.Generator().manual_seed(0)
    x_0, eps = (torch.randn(BATCH, SIZE, dtype=torch.float64, generator=generator) for _ in range(2))
    scale = torch.rand(BATCH, 1, dtype=torch.float64, generator=generator)
    return TripletBatch(x_0, eps, {"scale": scale}), scale


def context(start: Any = None, **more: Any) -> Any:
    """A method's inputs."""
    pairs, _ = samples()
    return SimpleNamespace(
        start=start,
        key=lambda use: Key(0, f"model/{use}"),
        triplet_batch=lambda positions: pairs,
        clean_batch=lambda positions: (pairs.x_0, pairs.conditions),
        unconditional=lambda: {"scale": torch.full((1, 1), UNCONDITIONAL, dtype=torch.float64)},
        **more,
    )


def losses(method: Any, step: int = 0) -> dict[str, float]:
    """Of the first batch."""
    batch = method.prepare(method.batch(Rows(step, range(BATCH))))
    return {name: float(value) for name, value in method.losses("student", batch, step).items()}


def check_halve(module: ModuleType) -> None:
    """Salimans & Ho 2022, algorithm 2 on the cosine schedule; the teacher's estimate is `k x`, the student's
    `0.7 x + END s`, s the end of its step. With guidance w, `k = u + w (c - u)`.
    """
    pairs, scale = samples()
    x_0, steps, positions = pairs.x_0.numpy(), 3, range(BATCH)
    i = np.floor(Key(0, "model/step").uniform(positions)[:, :1] * steps)
    eps = Key(0, "model/noise").normal(positions, (SIZE,)).astype(np.float64)

    def coefficients(t: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return np.cos(np.pi * t / 2), np.sin(np.pi * t / 2)

    def ddim(x: np.ndarray, k: np.ndarray, t: np.ndarray, s: np.ndarray) -> np.ndarray:
        (alpha, sigma), (alpha_s, sigma_s) = coefficients(t), coefficients(s)
        return alpha_s * k * x + sigma_s * (x - alpha * k * x) / sigma

    cases: list[tuple[str, Any]] = [("truncated_snr", 1.0), ("snr_plus_one", 1.0), ("truncated_snr", 2.5)]
    for weight, guidance in [*cases, ("truncated_snr", np.linspace(1, 5, BATCH)[:, None])]:
        own = isinstance(guidance, np.ndarray)  # each triplet's, for a student that takes it as an input
        values = {"from": "teacher", "steps": steps, "weight": weight, "training": TRAINING}
        config = module.Config.model_validate(
            values | ({"guidance_embedding": True} if own else {"guidance": guidance})
        )
        start = model(Scaled(0.0), Prediction.SAMPLE, Cosine(), takes_condition=True)
        student = model(Scaled(0.7), Prediction.SAMPLE, Cosine())
        inputs = context(start)
        if own:
            conditions = pairs.conditions | {"guidance": torch.from_numpy(guidance[:, 0])}
            inputs.clean_batch = lambda positions, conditions=conditions: (pairs.x_0, conditions)
        found = losses(module.Halve(config, inputs, student))
        k = UNCONDITIONAL + guidance * (scale.numpy() - UNCONDITIONAL)
        t = (i + 1) / steps
        alpha, sigma = coefficients(t)
        x_t = alpha * x_0 + sigma * eps
        x_end = ddim(ddim(x_t, k, t, t - 0.5 / steps), k, t - 0.5 / steps, i / steps)
        alpha_end, sigma_end = coefficients(i / steps)
        target = (x_end - sigma_end / sigma * x_t) / (alpha_end - sigma_end / sigma * alpha)
        snr = (alpha / sigma) ** 2
        w = np.maximum(snr, 1) if weight == "truncated_snr" else snr + 1
        assert found == {
            "x_0": pytest.approx((w * (0.7 * x_t + END * i / steps - target) ** 2).mean(), rel=1e-5)
        }


def check_reflow(module: ModuleType) -> None:
    """Liu et al. 2022, eq. 1, and Lee et al. 2024: times of density `e^{4t} + e^{4(1 - t)}`, pseudo-Huber."""
    pairs, _ = samples()
    x_0, eps = pairs.x_0.numpy(), pairs.eps.numpy()
    r = Key(0, "model/times").uniform(range(BATCH), 2)
    s = np.log(1 + r[:, :1] * (np.exp(4) - 1)) / 4
    for loss in ("plain", "improved"):
        config = module.Config.model_validate({"from": "teacher", "loss": loss, "training": TRAINING})
        student = model(Scaled(0.3, slope=2e-4), Prediction.FLOW, RectifiedFlow())
        found = losses(module.Reflow(config, context(), student))
        t = r[:, :1] if loss == "plain" else np.where(r[:, 1:] < 0.5, s, 1 - s)
        t = np.clip(t, 1e-5, 1 - 1e-5)
        error = 0.3 * ((1 - t) * x_0 + t * eps) + (0.2 + END) * t - (eps - x_0)
        c = 0.00054 * SIZE
        huber = (np.sqrt((error**2).sum(1) + c**2) - c).mean() / SIZE
        expected = (error**2).mean() if loss == "plain" else huber
        assert found == {"velocity": pytest.approx(expected, rel=1e-5)}


def check_direct(module: ModuleType) -> None:
    """`x_hat = eps - u(eps, 1)`; the perceptual phase adds pixels of a decoder `z -> 3 z`."""
    pairs, _ = samples()
    x_0, eps = pairs.x_0.numpy(), pairs.eps.numpy()
    error = eps - (0.3 * eps + 0.2) - x_0
    distances = {
        "l2": (error**2).mean(),
        "l1": np.abs(error).mean(),
        "log_l1": np.log(np.abs(error).mean(1) + 0.02).mean(),
    }
    for kind, expected in distances.items():
        values = {"method": "direct", "from": "teacher", "latent_loss": kind, "latent_weight": 0.5}
        more = {"pixel_weight": 0.25, "perceptual_from": 4, "training": TRAINING}
        config = module.Config.model_validate(values | more)
        student = model(Scaled(0.3, slope=2e-4), Prediction.FLOW, RectifiedFlow())
        backbone = SimpleNamespace(decode=lambda z: 3 * z, decoder=nn.Identity)
        method = module.Direct(config, context(backbone=backbone), student)
        latents = {"latents": pytest.approx(0.5 * expected, rel=1e-5)}
        pixels = {"pixels": pytest.approx(0.25 * 3 * np.abs(error).mean(), rel=1e-5)}
        assert losses(method, step=3) == latents
        assert losses(method, step=4) == latents | pixels


def check_noising(module: ModuleType) -> None:
    """`x_t = alpha x_0 + sigma eps` at `t = (i + 1) / steps`, i uniform, eps fresh."""
    pairs, _ = samples()
    found = module.noised(context(), Cosine(), range(BATCH), 3)
    i = np.floor(Key(0, "model/step").uniform(range(BATCH))[:, 0] * 3)
    eps = Key(0, "model/noise").normal(range(BATCH), (SIZE,)).astype(np.float64)
    angle = np.pi / 2 * (i[:, None] + 1) / 3
    assert found.i.tolist() == i.tolist() and torch.equal(
        found.conditions["scale"], pairs.conditions["scale"]
    )
    expected = np.cos(angle) * pairs.x_0.numpy() + np.sin(angle) * eps
    assert np.allclose(found.x_t.numpy(), expected, atol=1e-12)


def check_guidance(module: ModuleType) -> None:
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
        found = module.guided_model(start, context(start), w, by_condition)
        assert (found is start.denoiser) == (w == 1 and not (by_scale and by_condition))
        x_0 = found(pairs.eps, torch.full((BATCH,), 0.5), conditions).x_0
        scales = own[:, None].numpy() if "guidance" in conditions else w
        k = UNCONDITIONAL + scales * (scale.numpy() - UNCONDITIONAL)
        assert np.allclose(x_0.numpy(), k * pairs.eps.numpy(), atol=1e-6)
    assert module.with_scales(pairs.conditions, context(), 3.0, range(BATCH)) is pairs.conditions
    found = module.with_scales(pairs.conditions, context(), (2.0, 5.0), range(BATCH))
    drawn = 2 + 3 * Key(0, "model/guidance").uniform(range(BATCH))[:, 0]
    assert found.keys() == {"scale", "guidance"} and np.allclose(found["guidance"].numpy(), drawn)


def check_lcm(module: ModuleType) -> None:
    """Luo et al. 2023, algorithm 1, with one segment and with two (Wang et al. 2024) of 6 teacher steps.

    The student's estimate is `0.7 x + END e`, its average's `0.6 x + END e`, e the end of the segment.
    """
    pairs, scale = samples()
    x_0, grid, positions = pairs.x_0.numpy(), 6, range(BATCH)
    i = np.floor(Key(0, "model/step").uniform(positions)[:, :1] * grid)
    eps = Key(0, "model/noise").normal(positions, (SIZE,)).astype(np.float64)
    drawn = 1 + 3 * Key(0, "model/guidance").uniform(positions)[:, :1]  # of 1 to 4

    def ddim(x: np.ndarray, estimate: np.ndarray, t: np.ndarray, s: np.ndarray) -> np.ndarray:
        rest = (x - np.cos(np.pi * t / 2) * estimate) / np.sin(np.pi * t / 2)
        return np.cos(np.pi * s / 2) * estimate + np.sin(np.pi * s / 2) * rest

    cases: list[tuple[int, Any, bool]]
    cases = [(1, 1.0, False), (2, 2.5, False), (3, (1.0, 4.0), True), (1, (1.0, 4.0), False)]
    for segments, guidance, embeds in cases:
        values = {
            "method": "lcm",
            "from": "teacher",
            "training": TRAINING,
            "grid": grid,
            "segments": segments,
        }
        ranged = isinstance(guidance, tuple)
        config = module.Config.model_validate(values | {"guidance": guidance, "guidance_embedding": embeds})
        start = model(Scaled(0.0), Prediction.SAMPLE, Cosine(), takes_condition=True)
        student, average = (model(Scaled(k), Prediction.SAMPLE, Cosine()) for k in (0.7, 0.6))
        backbone = SimpleNamespace(network=lambda net, inputs, average=average: average.denoiser.network)
        method = module.METHOD(config, context(start, backbone=backbone), student)
        assert method.groups["student"].decays == {"target": 0.95}
        method.groups["student"].averages["target"] = {"net": average.net}
        found = losses(method)
        k = UNCONDITIONAL + (drawn if ranged else guidance) * (scale.numpy() - UNCONDITIONAL)
        t, s, each = (i + 1) / grid, i / grid, grid // segments
        end = np.floor(i / each) * each / grid
        x_t = np.cos(np.pi * t / 2) * x_0 + np.sin(np.pi * t / 2) * eps
        x_s = ddim(x_t, k * x_t, t, s)
        with np.errstate(divide="ignore", invalid="ignore"):
            target = np.where(s == end, x_s, ddim(x_s, 0.6 * x_s + END * end, s, end))
        error = ddim(x_t, 0.7 * x_t + END * end, t, end) - target
        expected = (np.sqrt(error**2 + 1e-6) - 1e-3).mean()
        assert found == {"consistency": pytest.approx(expected, rel=1e-5)}


def check_sdxs(module: ModuleType) -> None:
    """Song et al. 2024, eq. 10 and 11. Estimates of x_0: the student's `0.7 x`, the fake's `0.4 x`, the
    teacher's `k x` with guidance 2.5; images are `3 z`, feature maps the image and its square, heads `+-2 f`.

    4 of 10 steps are warm-up; alpha falls from 1 to 0.5, lambda_FM from 2 to 0.4; hinge loss from step 6.
    """
    pairs, scale = samples()
    x_0, eps = pairs.x_0.numpy(), pairs.eps.numpy()
    k = UNCONDITIONAL + 2.5 * (scale.numpy() - UNCONDITIONAL)

    def images(z: Tensor) -> Tensor:
        return 3 * z[:, None, None, :]

    network = SimpleNamespace(maps=lambda images: [images, images.square()])
    backbone = SimpleNamespace(
        network=lambda net, inputs: lambda x, time, conditions: 0.4 * x, decode=images, decoder=nn.Identity
    )
    start = model(Scaled(0.0), Prediction.SAMPLE, Cosine(), takes_condition=True)
    teacher = Model("teacher", start.net, start.denoiser, None, TEACHERS)
    gain = torch.tensor(0.7, requires_grad=True)
    student = model(Scaled(0.0), Prediction.SAMPLE, Cosine())
    student.denoiser = replace(student.denoiser, network=lambda x, time, conditions: gain * x)
    rates = {"learning_rate": 1.0}
    values = {"method": "sdxs", "from": "teacher", "training": TRAINING, "fake": rates, "guidance": 2.5}
    values |= {"warmup_steps": 4, "alpha": (1.0, 0.5), "lambda_fm": (2.0, 0.4), "student_every": 2}
    values |= {"gan": {"from_step": 6, "weight": 0.3, "optimizer": rates}, "earliest": 0.1, "latest": 0.9}
    config = module.Config.model_validate(values)
    assert config.needs_feature_maps
    with (
        patch.object(module, "open_maps", lambda context: network),
        patch.object(module, "map_widths", lambda network: [1, 1]),
    ):
        method = module.METHOD(config, context(teacher, teacher=teacher, backbone=backbone), student)
    assert set(method.groups["discriminator"].modules.values()) == set(method.heads)
    method.heads = [lambda found: 2 * found, lambda found: -2 * found]
    assert [method.schedule(step) for step in (0, 3, 4, 5, 6, 7)] == [
        ("student",),
        ("student",),
        ("fake", "student"),
        ("fake",),
        ("fake", "discriminator", "student"),
        ("fake", "discriminator"),
    ]

    x, y = (3 * z.astype(np.float32).astype(np.float64) for z in (0.7 * eps, x_0))
    feature_maps = [(x, y), (x**2, y**2)]
    window = np.exp(-np.array([1, 0, 1]) / (2 * 1.5**2))
    window /= window.sum()

    def ssim(x: np.ndarray, y: np.ndarray) -> np.ndarray:
        x, y = x - y.min(1, keepdims=True), y - y.min(1, keepdims=True)
        c_1, c_2 = (((c * y.max(1)) ** 2 + 1e-6) for c in (0.01, 0.03))
        m_x, m_y = x @ window, y @ window
        covariance = (x - m_x[:, None]) * (y - m_y[:, None]) @ window
        v_x, v_y = (x - m_x[:, None]) ** 2 @ window, (y - m_y[:, None]) ** 2 @ window
        luminance = (2 * m_x * m_y + c_1) / (m_x**2 + m_y**2 + c_1)
        return luminance * (2 * covariance + c_2) / (v_x + v_y + c_2)

    matched = np.mean([1 - ssim(x, y).mean() for x, y in feature_maps])
    deceived = np.mean([-(h * a).mean() for (a, _), h in zip(feature_maps, (2, -2), strict=True)])
    times = Key(0, "model/times").uniform(range(BATCH), 3)[:, :1]
    noise = Key(0, "model/eps/student").normal(range(BATCH), (SIZE,)).astype(np.float64)
    for step, alpha, weight in [(2, 1.0, 2.0), (4, 1.0, 2.0), (6, 0.8, 1.36), (9, 0.5, 0.4)]:
        batch = method.prepare(method.batch(Rows(step, range(BATCH))))
        found = method.losses("student", batch, step)
        tau = 0.1 + times * (alpha * 0.9 - 0.1)
        x_tau = np.cos(np.pi * tau / 2) * 0.7 * eps + np.sin(np.pi * tau / 2) * noise
        g = alpha * (0.4 - k) * x_tau
        expected = {"features": weight * matched}
        expected |= {"matching": 0.5 * (g**2).mean()} if step >= 4 else {}
        expected |= {"adversarial": 0.3 * deceived} if step >= 6 else {}
        assert {name: float(value.detach()) for name, value in found.items()} == pytest.approx(
            expected, rel=1e-4
        )
        if step >= 4:
            (slope,) = torch.autograd.grad(found["matching"], gain, retain_graph=True)
            assert float(slope) == pytest.approx((g * eps).mean(), rel=1e-4)
        (slope,) = torch.autograd.grad(found["features"], gain)
        assert float(slope) != 0
    critic = float(method.losses("discriminator", batch, 9)["critic"])
    hinges = [
        np.maximum(1 - h * b, 0).mean() + np.maximum(1 + h * a, 0).mean()
        for (a, b), h in zip(feature_maps, (2, -2), strict=True)
    ]
    assert critic == pytest.approx(np.mean(hinges), rel=1e-4)


CHECKS: dict[ModuleType, Callable[[ModuleType], None]] = {
    halve: check_halve,
    reflow: check_reflow,
    direct: check_direct,
    lcm: check_lcm,
    sdxs: check_sdxs,
    noising: check_noising,
    guiding: check_guidance,
}
MUTATIONS: dict[ModuleType, Sequence[tuple[str, str]]] = {
    halve: [
        ("t = (batch.i + 1) / self.config.steps", "t = (batch.i + 0.5) / self.config.steps"),
        ("end = batch.i / self.config.steps", "end = t"),
        ("estimate.x_0 - batch.target", "estimate.eps - batch.target"),
        ("expand_like(weight, error) * error.square()", "error.square()"),
        ("expand_like(weight, error) * error.square()", "expand_like(weight, error) * error.abs()"),
        ("self.teacher, batch.x_t, batch.i, self.config.steps", "self.teacher, batch.x_t, batch.i, 4"),
        ("config.guidance, config.guidance_embedding)", "1.0, config.guidance_embedding)"),
        ("config.guidance, config.guidance_embedding)", "config.guidance, False)"),
        ("self.path, rows.positions, self.config.steps)", "self.path, rows.positions, 4)"),
        ('"truncated_snr": truncated_snr', '"truncated_snr": snr_plus_one'),
        ('"snr_plus_one": snr_plus_one', '"snr_plus_one": truncated_snr'),
    ],
    reflow: [
        ("- (pairs.eps - pairs.x_0)", "+ (pairs.eps - pairs.x_0)"),
        ("torch.lerp(pairs.x_0, pairs.eps,", "torch.lerp(pairs.eps, pairs.x_0,"),
        ("denoise, x_t, t, t,", "denoise, x_t, 1 - t, t,"),
        ("denoise, x_t, t, t,", "denoise, x_t, t, 1 - t,"),
        ("conditions).velocity", "conditions).eps"),
        ('Times.U_SHAPED if self.config.loss == "improved"', 'Times.U_SHAPED if self.config.loss == "plain"'),
        ('pseudo_huber(error) if self.config.loss == "improved"', "pseudo_huber(error) if False"),
        ("- c).mean() / dim", "- c).mean()"),
        ("c = HUBER * dim", "c = HUBER * 100 * dim"),
        ("c**2).sqrt() - c)", "c**2).sqrt())"),
    ],
    direct: [
        ("t = torch.ones(", "t = torch.zeros("),
        ("self.denoiser, batch.eps,", "self.denoiser, batch.x_0,"),
        ("torch.zeros_like(t)", "t"),
        ("config.latent_weight * distance", "distance"),
        ("x_hat, batch.x_0)}", "x_hat, batch.eps)}"),
        ("step >= config.perceptual_from", "step > config.perceptual_from"),
        ("config.pixel_weight * (image", "(image"),
        ("target = backbone.decode(batch.x_0)", "target = backbone.decode(batch.eps)"),
        ("image = backbone.decode(x_hat)", "image = x_hat"),
        ('if kind == "l2"', 'if kind == "l1"'),
        ('if kind == "log_l1"', 'if kind == "l1"'),
        ("each + NEAR", "each"),
    ],
    lcm: [
        ("(batch.i + 1) / grid, batch.i / grid", "(batch.i + 1) / grid, (batch.i + 0.5) / grid"),
        ("(batch.i / each).floor() * each", "0 * batch.i"),
        ("asked(self.teacher, batch.x_t, t,", "asked(self.teacher, batch.x_t, s,"),
        ("self.landed(self.average, x_s", "self.landed(self.denoiser, x_s"),
        ("self.landed(self.average, x_s", "self.landed(self.average, batch.x_t"),
        ("torch.where(expand_like(s == end, x_s).bool(), x_s, reached)", "reached.nan_to_num()"),
        ("asked(denoise, x, t, end,", "asked(denoise, x, t, t,"),
        ("predicted - batch.target", "predicted - batch.x_t"),
        ("context, config.scale, config.per_sample)", "context, config.scale, False)"),
        ("context, config.scale, config.per_sample)", "context, 1.0, config.per_sample)"),
        ("self.config.guidance, rows", "1.0, rows"),
        ("HUBER = 1e-3", "HUBER = 1e-1"),
        ("rows.positions, self.config.grid)", "rows.positions, 5)"),
    ],
    sdxs: [
        ("matching(x, alpha * self.difference", "matching(x, self.difference"),
        ("return fake - self.real(", "return -fake + self.real("),
        ("self.real(x_tau, tau,", "self.teacher.denoiser(x_tau, tau,"),
        ("alpha * self.config.latest", "self.config.latest"),
        ("low + (high - low) * batch.times[:, 0]", "high * batch.times[:, 0]"),
        ("low + (high - low) * batch.times[:, 0]", "low + (high - low) * batch.times[:, 1]"),
        ("batch.eps[0]", "batch.eps[1]"),
        ('"x_t": x_t, ', ""),
        ("lambda_fm * feature_matching(", "feature_matching("),
        ("targets = self.maps(batch.real)", "targets = maps"),
        ("batch.step >= config.warmup_steps", "batch.step > config.warmup_steps"),
        ("after < 0", "after <= 0"),
        ("after % self.config.student_every == 0", "step % 3 == 0"),
        ("step >= self.config.gan.from_step", "step > self.config.gan.from_step"),
        ("last = self.training.steps - 1\n        progress", "last = self.training.steps\n        progress"),
        ("max(step - self.warmup_steps, 0)", "step"),
        ("config.gan.weight * torch", "torch"),
        ("real, drawn = self.maps", "drawn, real = self.maps"),
        ("self.maps(batch.x)", "self.maps(batch.x_t)"),
        ("context.backbone.decode(x.float())", "context.backbone.decode(2 * x.float())"),
    ],
    noising: [
        ("alpha_sigma((i + 1) / steps)", "alpha_sigma(i / steps + 0.1)"),
        ("(uniform * steps).floor()", "(uniform * steps).round() * 0.9"),
        ("expand_like(sigma, eps) * eps", "expand_like(alpha, eps) * eps"),
        ("expand_like(alpha, x_0) * x_0", "expand_like(sigma, x_0) * x_0"),
        ('context.key("noise")', 'context.key("other")'),
        ('context.key("step")', 'context.key("other")'),
    ],
    guiding: [
        ("low + (high - low)", "high + (high - low)"),
        ("context.unconditional(), scale)", "context.unconditional(), 1.0)"),
        ("if scale != 1 or", "if"),
        ("or (by_scale and per_sample)", ""),
        ("(by_scale and per_sample)", "per_sample"),
    ],
}  # fmt: skip


@pytest.fixture(autouse=True)
def full_precision(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "no")


def mutated(module: ModuleType, line: str, other: str) -> ModuleType:
    """The module with one expression replaced."""
    assert module.__file__ is not None
    with open(module.__file__) as file:  # noqa: PTH123
        source = file.read()
    assert source.count(line) == 1, f"{line!r} is there {source.count(line)} times; write the mutation anew"
    made = ModuleType(module.__name__)
    exec(compile(source.replace(line, other), module.__file__, "exec"), made.__dict__)
    return made


@pytest.mark.parametrize("module", CHECKS, ids=lambda module: module.__name__.split(".")[-1])
def test_losses_are_the_papers(module: ModuleType) -> None:
    CHECKS[module](module)


@pytest.mark.parametrize(
    ("module", "line", "other"),
    [(module, *mutation) for module, mutations in MUTATIONS.items() for mutation in mutations],
    ids=[f"{m.__name__.split('.')[-1]}-{i}" for m, each in MUTATIONS.items() for i in range(len(each))],
)
def test_a_mutation_is_noticed(module: ModuleType, line: str, other: str) -> None:
    broken = mutated(module, line, other)
    with pytest.raises(AssertionError):
        CHECKS[module](broken)
