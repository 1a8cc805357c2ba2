"""Distributions of training times, as inverse CDFs of uniform numbers."""

import math
from enum import StrEnum

from torch import Tensor, where

EDGE = 1e-5


class Times(StrEnum):
    """The distributions by name."""

    UNIFORM = "uniform"
    U_SHAPED = "u_shaped"


def times_from(distribution: Times, r: Tensor) -> Tensor:
    """Times `[B]` in [1e-5, 1 - 1e-5] from r `[B, 2]`, uniform in [0, 1)."""
    t = {Times.UNIFORM: uniform, Times.U_SHAPED: u_shaped}[distribution](r)
    return t.clamp(EDGE, 1 - EDGE)


def uniform(r: Tensor) -> Tensor:
    """p(t) = 1."""
    return r[:, 0]


def u_shaped(r: Tensor, a: float = 4.0) -> Tensor:
    """p(t) proportional to `e^{a t} + e^{a (1 - t)}` (Lee et al. 2024, section 4)."""
    s = (1 + r[:, 0] * math.expm1(a)).log() / a
    return where(r[:, 1] < 0.5, s, 1 - s)
