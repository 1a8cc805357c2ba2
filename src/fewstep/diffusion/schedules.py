"""Noise schedules, each defined by an angle and a scale.

Every schedule is written `alpha = scale cos(angle)`, `sigma = scale sin(angle)`. The angle expresses the
signal-to-noise ratio without infinities (`log SNR = -2 log tan(angle)`, angle 0 is data, pi/2 is noise).
Two schedules at the same angle have the same signal-to-noise ratio and differ only by a scale. So a
variance-preserving teacher can be used as a rectified flow without training (Salimans & Ho 2022, appendix D;
Liu et al. 2022). Coefficients are float64.
"""

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

SMALLEST_ALPHA_BAR = 2.0**-24
"""alpha_bar that stock multistep solvers use for a zero terminal SNR: the smallest float16 above 0."""


class Schedule(ABC):
    """A path from data to noise. All methods are element-wise, float64 in and out."""

    @abstractmethod
    def angle(self, t: Tensor) -> Tensor:
        """Angle in [0, pi/2] at time t in [0, 1], increasing."""

    @abstractmethod
    def time_at(self, angle: Tensor) -> Tensor:
        """The inverse of `angle`, clamped to [0, 1] where the schedule does not reach."""

    def scale(self, t: Tensor) -> Tensor:
        """`sqrt(alpha^2 + sigma^2)`; 1 for variance-preserving schedules."""
        return torch.ones_like(t)

    def alpha_sigma(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """Signal and noise coefficients at t."""
        t = t.double()
        angle, scale = self.angle(t), self.scale(t)
        return scale * torch.cos(angle), scale * torch.sin(angle)

    def log_snr(self, t: Tensor) -> Tensor:
        """`log(alpha^2 / sigma^2)`: +inf at pure data, -inf at pure noise."""
        alpha, sigma = self.alpha_sigma(t)
        return 2 * (torch.log(alpha) - torch.log(sigma))

    def network_time(self, t: Tensor) -> Tensor:
        """The time input of a network made for this schedule: 1000 t."""
        return 1000.0 * t

    def without_zero_snr(self) -> "Schedule":
        """The schedule without a zero terminal SNR, as in stock DPM-Solver++; see `DiscreteVP`."""
        return self


@dataclass(frozen=True)
class RectifiedFlow(Schedule):
    """`alpha = 1 - t, sigma = t`; velocity `u = eps - x_0` (Liu et al. 2022, eq. 1)."""

    def angle(self, t: Tensor) -> Tensor:
        return torch.atan2(t, 1 - t)

    def time_at(self, angle: Tensor) -> Tensor:
        sine, cosine = torch.sin(angle), torch.cos(angle)
        return sine / (sine + cosine)

    def scale(self, t: Tensor) -> Tensor:
        return torch.hypot(1 - t, t)

    def alpha_sigma(self, t: Tensor) -> tuple[Tensor, Tensor]:
        t = t.double()
        return 1 - t, t


@dataclass(frozen=True)
class Cosine(Schedule):
    """`alpha = cos(pi t / 2)` (Salimans & Ho 2022, section 2)."""

    def angle(self, t: Tensor) -> Tensor:
        return t * (math.pi / 2)

    def time_at(self, angle: Tensor) -> Tensor:
        return (angle / (math.pi / 2)).clamp(0, 1)


@dataclass(frozen=True)
class DiscreteVP(Schedule):
    """A table of `alpha_bar_k`, as in DDPM checkpoints, interpolated to continuous time.

    Index k of a table of length T sits at `t = (k + 1) / T`; between its entries, and down to pure data
    at t = 0, the angle is linear. SD's table ends at `alpha_bar_T = 0.0047`: noisier angles clamp to t = 1.
    """

    alphas_cumprod: tuple[float, ...]

    def __post_init__(self) -> None:
        table = torch.tensor(self.alphas_cumprod, dtype=torch.float64)
        if len(table) < 2 or (table < 0).any() or (table > 1).any() or (table.diff() >= 0).any():
            raise ValueError("alphas_cumprod must fall strictly within [0, 1]")
        angles = torch.cat([torch.zeros(1, dtype=torch.float64), torch.acos(table.sqrt())])
        object.__setattr__(self, "_angles", angles)

    def _knots(self, like: Tensor) -> Tensor:
        angles: Tensor = self._angles  # type: ignore[attr-defined]
        return angles.to(like.device)

    def angle(self, t: Tensor) -> Tensor:
        knots = self._knots(t)
        position = t.double() * (len(knots) - 1)
        left = position.floor().long().clamp(0, len(knots) - 2)
        return torch.lerp(knots[left], knots[left + 1], position - left)

    def time_at(self, angle: Tensor) -> Tensor:
        knots = self._knots(angle)
        angle = angle.double().clamp(knots[0], knots[-1]).contiguous()
        right = torch.searchsorted(knots, angle).clamp(1, len(knots) - 1)
        share = (angle - knots[right - 1]) / (knots[right] - knots[right - 1])
        return (right - 1 + share) / (len(knots) - 1)

    def network_time(self, t: Tensor) -> Tensor:
        """The table's index k as a float, never below 0."""
        steps = len(self.alphas_cumprod)
        return (steps * t - 1).clamp(min=0)

    def without_zero_snr(self) -> "DiscreteVP":
        """The table with a last `alpha_bar` of 0 replaced by 2^-24.

        DPM-Solver++ extrapolates in log SNR, which is impossible from an infinite value.
        """
        *others, last = self.alphas_cumprod
        return self if last > 0 else DiscreteVP((*others, min(SMALLEST_ALPHA_BAR, others[-1] / 2)))


def schedule_metadata(schedule: Schedule) -> dict[str, Any]:
    """A schedule as plain values, for a manifest."""
    match schedule:
        case DiscreteVP():
            return {"kind": "discrete_vp", "alphas_cumprod": list(schedule.alphas_cumprod)}
        case RectifiedFlow():
            return {"kind": "rectified_flow"}
        case Cosine():
            return {"kind": "cosine"}
    raise TypeError(f"no metadata for {schedule!r}")


def schedule_from_metadata(metadata: dict[str, Any]) -> Schedule:
    """The inverse of `schedule_metadata`. Raises ValueError on an unknown kind."""
    match metadata:
        case {"kind": "discrete_vp", "alphas_cumprod": [*table]}:
            return DiscreteVP(tuple(table))
        case {"kind": "rectified_flow"}:
            return RectifiedFlow()
        case {"kind": "cosine"}:
            return Cosine()
    raise ValueError(f"unknown schedule {metadata!r}")
