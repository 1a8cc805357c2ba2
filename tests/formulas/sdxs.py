"""The losses of the method `sdxs`."""

from dataclasses import replace
from types import ModuleType, SimpleNamespace
from unittest.mock import patch

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from fewstep.backbones.model import Model
from fewstep.core.keyed import Key
from fewstep.diffusion.denoiser import Prediction
from fewstep.diffusion.sampling import TEACHERS
from fewstep.diffusion.schedules import Cosine
from fewstep.methods import sdxs
from fewstep.training.method import Rows
from tests.formulas.common import BATCH, SIZE, TRAINING, UNCONDITIONAL, Scaled, context, model, samples

MODULE = sdxs


def check(module: ModuleType) -> None:
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
    method.heads = [lambda features: 2 * features, lambda features: -2 * features]
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
    times = Key(0, "model/scores/times").uniform(range(BATCH), 3)[:, :1]
    noise = Key(0, "model/scores/student").normal(range(BATCH), (SIZE,)).astype(np.float64)
    for step, alpha, weight in [(2, 1.0, 2.0), (4, 1.0, 2.0), (6, 0.8, 1.36), (9, 0.5, 0.4)]:
        batch = method.prepare(method.batch(Rows(step, range(BATCH))))
        terms = method.losses("student", batch, step)
        tau = 0.1 + times * (alpha * 0.9 - 0.1)
        x_tau = np.cos(np.pi * tau / 2) * 0.7 * eps + np.sin(np.pi * tau / 2) * noise
        g = alpha * (0.4 - k) * x_tau
        expected = {"features": weight * matched}
        expected |= {"matching": 0.5 * (g**2).mean()} if step >= 4 else {}
        expected |= {"adversarial": 0.3 * deceived} if step >= 6 else {}
        assert {name: float(value.detach()) for name, value in terms.items()} == pytest.approx(
            expected, rel=1e-4
        )
        if step >= 4:
            (slope,) = torch.autograd.grad(terms["matching"], gain, retain_graph=True)
            assert float(slope) == pytest.approx((g * eps).mean(), rel=1e-4)
        (slope,) = torch.autograd.grad(terms["features"], gain)
        assert float(slope) != 0
    critic = float(method.losses("discriminator", batch, 9)["critic"])
    hinges = [
        np.maximum(1 - h * b, 0).mean() + np.maximum(1 + h * a, 0).mean()
        for (a, b), h in zip(feature_maps, (2, -2), strict=True)
    ]
    assert critic == pytest.approx(np.mean(hinges), rel=1e-4)


MUTATIONS = [
    ("matching(x, alpha * self.difference", "matching(x, self.difference"),
    ("return fake - self.real(", "return -fake + self.real("),
    ("self.real(x_tau, tau,", "self.teacher.denoiser(x_tau, tau,"),
    ("alpha * self.config.latest", "self.config.latest"),
    ("low + (high - low) * batch.times[:, 0]", "high * batch.times[:, 0]"),
    ("low + (high - low) * batch.times[:, 0]", "low + (high - low) * batch.times[:, 1]"),
    ("batch.eps[0]", "batch.eps[1]"),
    ('"x_t": x_t, ', ""),
    ("lambda_fm * feature_matching(", "feature_matching("),
    ("targets = maps_of(real)", "targets = maps"),
    ("batch.step >= config.warmup_steps", "batch.step > config.warmup_steps"),
    ("after < 0", "after <= 0"),
    ("after % self.config.student_every == 0", "step % 3 == 0"),
    ("step >= self.config.gan.from_step", "step > self.config.gan.from_step"),
    ("last = self.training.steps - 1\n        progress", "last = self.training.steps\n        progress"),
    ("max(step - self.warmup_steps, 0)", "step"),
    ("gan.weight * torch", "torch"),
    ("real, drawn = self.maps", "drawn, real = self.maps"),
    ("self.maps(batch.x)", "self.maps(batch.x_t)"),
    ("context.backbone.decode(x.float())", "context.backbone.decode(2 * x.float())"),
]
