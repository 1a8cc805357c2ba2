"""A teacher that is known exactly: images whose pixels are draws of a mixture of two Gaussians."""

import math
from copy import deepcopy
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from fewstep.backbones.model import Model
from fewstep.core.keyed import Key
from fewstep.data.noise import fresh_noise
from fewstep.diffusion.denoiser import Conditions, Denoiser, Prediction
from fewstep.diffusion.sampling import STUDENTS, TEACHERS
from fewstep.diffusion.schedules import Cosine
from fewstep.diffusion.solvers import solve
from fewstep.students.config import MethodConfig
from fewstep.students.learn import method_module
from fewstep.training.loop import train

PATH = Cosine()
SHAPE = (1, 16, 16)
MANY = 100
"""Number of images on which a student is measured."""


@dataclass(frozen=True)
class Mixture:
    """Of each pixel: `share N(low, deviation^2) + (1 - share) N(high, deviation^2)`."""

    share: float
    low: float
    high: float
    deviation: float

    def x_0(self, x: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        """`E[x_0 | x_t]`, element by element."""
        variance = alpha**2 * self.deviation**2 + sigma**2
        apart, middle = self.high - self.low, (self.high + self.low) / 2
        ratio = math.log((1 - self.share) / self.share) + alpha * apart * (x - alpha * middle) / variance
        mean = self.low + apart * torch.sigmoid(ratio)
        return mean + alpha * self.deviation**2 / variance * (x - alpha * mean)

    def draw(self, uniform: np.ndarray, normal: np.ndarray) -> np.ndarray:
        """Samples from numbers uniform in [0, 1) and normal, of any shape."""
        return np.where(uniform < self.share, self.low, self.high) + self.deviation * normal

    def images(self, key: Key, positions: Any) -> Tensor:
        """One image per position."""
        uniform = key.uniform(positions, math.prod(SHAPE)).reshape(-1, *SHAPE)
        return torch.from_numpy(self.draw(uniform, Key(1, "pixels").normal(positions, SHAPE))).float()

    def distance(self, samples: np.ndarray) -> tuple[float, float]:
        """Wasserstein-1 distance of samples `[N]` by equal quantiles, and the error of the low share."""
        generator = np.random.default_rng(0)
        many = self.draw(generator.random(1_000_000), generator.standard_normal(1_000_000))
        quantiles = np.quantile(many, (np.arange(len(samples)) + 0.5) / len(samples))
        middle = (self.low + self.high) / 2
        share = float((samples < middle).mean() - (many < middle).mean())
        return float(np.abs(np.sort(samples) - quantiles).mean()), share


class Toy(nn.Module):
    """v-prediction of each pixel: the mixture's exact one, plus a perceptron that is 0 before training."""

    def __init__(self, mixture: Mixture, width: int = 64) -> None:
        super().__init__()
        self.mixture = mixture
        self.layers = nn.Sequential(
            nn.Linear(6, width),
            nn.SiLU(),
            nn.Linear(width, width),
            nn.SiLU(),
            nn.Linear(width, 1),
        )
        last: Any = self.layers[-1]
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)

    def forward(self, x: Tensor, time: Tensor, conditions: Conditions) -> Tensor:
        angle = (math.pi / 2 * time.double() / 1000).reshape(-1, 1, 1, 1)
        alpha, sigma = torch.cos(angle), torch.sin(angle).clamp(min=1e-6)
        exact = (alpha * x.double() - self.mixture.x_0(x.double(), alpha, sigma)) / sigma
        waves = [torch.cos(k * angle).float().expand(x.shape) for k in (1, 2, 4)]
        inputs = torch.stack([x, 5 * x, torch.tanh(3 * x), *waves], -1)
        prediction: Tensor = exact.to(x.dtype) + self.layers(inputs)[..., 0]
        return prediction


def context_of(mixture: Mixture, teacher: Model, **more: Any) -> Any:
    """A method's inputs; more: further ones."""
    return SimpleNamespace(
        start=teacher,
        teacher=teacher,
        key=lambda use: Key(0, use),
        guidance_interval=None,
        clean_batch=lambda positions: (mixture.images(Key(0, "modes"), positions), {}),
        backbone=SimpleNamespace(network=lambda net, inputs: net),
        **more,
    )


def learn_mixture(
    method: str, mixture: Mixture, folder: Path, values: dict[str, Any], **more: Any
) -> tuple[float, float]:
    """Train a student of the exact teacher. Returns `Mixture.distance` of its samples.

    values: the method's parameters. more: further inputs of the context.
    """
    torch.manual_seed(0)
    teacher = replace(toy_model(Toy(mixture).requires_grad_(False)), name="teacher", sampling=TEACHERS)
    student = toy_model(deepcopy(teacher.net).requires_grad_(True))
    module = method_module(method)
    config: MethodConfig = module.Config.model_validate({"method": method, "from": "teacher"} | values)
    made = module.student_of(config, student)
    train(module.METHOD(config, context_of(mixture, teacher, **more), made), "toy", 0, folder)
    indices, steps = range(MANY), made.steps or 1
    noise = torch.from_numpy(Key(1, "noise").normal(indices, SHAPE))
    fresh = fresh_noise(Key(1, "fresh"), indices, SHAPE, noise.device)
    with torch.no_grad():
        x = solve(made.sampling.solver, made.denoiser, noise, made.sampling.grid(steps), {}, PATH, fresh)
    return mixture.distance(x.flatten().numpy())


def toy_model(net: nn.Module) -> Model:
    """A student on this network."""
    denoiser = Denoiser(net, PATH, Prediction.V, PATH)
    return Model("toy", net, denoiser, None, STUDENTS)
