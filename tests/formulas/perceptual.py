"""Perceptual distance."""

from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from fewstep.losses import perceptual

MODULE = perceptual


def check(module: ModuleType) -> None:
    """Zhang et al. 2018, eq. 1: `sum_l mean_hw sum_c w (a - b)^2` of unit vectors; w = 1: the mean over l."""
    generator = torch.Generator().manual_seed(0)
    x, y = (torch.randn(2, 3, 4, 5, dtype=torch.float64, generator=generator) for _ in range(2))
    weights = [torch.tensor([0.2, 0.5, 0.0]), torch.tensor([1.5])]

    def maps(x: Tensor) -> list[Tensor]:
        return [x, x[:, :1, :2].exp() - 1]

    def unit(x: np.ndarray) -> np.ndarray:
        return x / np.sqrt((x**2).sum(1, keepdims=True))

    def expected(channels: list[Any]) -> list[float]:
        images = zip(maps(x), maps(y), channels, strict=True)
        squares = [((unit(a.numpy()) - unit(b.numpy())) ** 2, np.array(w)) for a, b, w in images]
        return [(w[:, None, None] * square).sum(1).mean() for square, w in squares]

    for channels, value in (
        (None, np.mean(expected([[1.0] * 3, [1.0]]))),
        (weights, np.sum(expected([weight.tolist() for weight in weights]))),
    ):
        distance = module.perceptual_distance(SimpleNamespace(maps=maps, channel_weights=channels), x, y)
        assert float(distance) == pytest.approx(float(value), rel=1e-5)


MUTATIONS = [
    ("normalize(a.float(), dim=1) - normalize(b.float(), dim=1)", "a.float() - b.float()"),
    (".square()", ".abs()"),
    ("targets = network.maps(y)", "targets = network.maps(x)"),
    ("for each in squares]).mean()", "for each in squares]).sum()"),
    ("for each in weighted]).sum()", "for each in weighted]).mean()"),
    ("w[:, None, None] * each", "each"),
    ("w[:, None, None] * each", "w[:, None, None] ** 2 * each"),
    ("each.sum(1).mean() for each in weighted", "each.mean() for each in weighted"),
]  # fmt: skip
