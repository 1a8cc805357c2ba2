"""A network, whatever it predicts, read as a pair (x_0, eps) at any point of any path."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import NamedTuple

import torch
from torch import Tensor

from fewstep.diffusion.schedules import Schedule

Conditions = dict[str, Tensor]
"""Named conditioning tensors, each with the batch as its first dimension; empty for none."""

GUIDANCE = "guidance"
"""The condition `[B]` that says how much guidance is wanted, where it is no constant."""

Network = Callable[[Tensor, Tensor, Conditions], Tensor]
"""(x [B, ...], network time [B], conditions) -> raw prediction [B, ...]."""


class Prediction(StrEnum):
    """What a network's raw output means; the names are diffusers'."""

    EPSILON = "epsilon"
    SAMPLE = "sample"
    V = "v_prediction"
    FLOW = "flow"

    def weights(self, alpha: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
        """(c_0, c_1) of `prediction = c_0 x_0 + c_1 eps`."""
        zero, one = torch.zeros_like(alpha), torch.ones_like(alpha)
        match self:
            case Prediction.EPSILON:
                return zero, one
            case Prediction.SAMPLE:
                return one, zero
            case Prediction.V:
                return -sigma, alpha
            case Prediction.FLOW:
                return -one, one


class Estimate(NamedTuple):
    """What a denoiser believes x_t is made of; both `[B, ...]`, `x_t = alpha x_0 + sigma eps`."""

    x_0: Tensor
    eps: Tensor

    @property
    def velocity(self) -> Tensor:
        """Rectified-flow velocity `u = eps - x_0`."""
        return self.eps - self.x_0


Denoise = Callable[[Tensor, Tensor, Conditions], Estimate]
"""(x_t [B, ...], t [B] in [0, 1], conditions) -> Estimate."""


def along(coefficient: Tensor, x: Tensor) -> Tensor:
    """Per-sample coefficients `[B]` shaped and typed to multiply `x` `[B, ...]`."""
    return coefficient.to(x.dtype).reshape(-1, *[1] * (x.ndim - 1))


def to_estimate(raw: Tensor, x: Tensor, alpha: Tensor, sigma: Tensor, prediction: Prediction) -> Estimate:
    """Solve `x = alpha x_0 + sigma eps, raw = c_0 x_0 + c_1 eps` for (x_0, eps).

    Shapes: raw, x `[B, ...]`; alpha, sigma `[B]`. Singular where the prediction says nothing new: `epsilon`
    at alpha = 0 (zero terminal SNR), `sample` at sigma = 0.
    """
    c_0, c_1 = prediction.weights(alpha, sigma)
    determinant = alpha * c_1 - sigma * c_0
    x_0 = along(c_1 / determinant, x) * x - along(sigma / determinant, x) * raw
    eps = along(alpha / determinant, x) * raw - along(c_0 / determinant, x) * x
    return Estimate(x_0, eps)


def from_estimate(estimate: Estimate, alpha: Tensor, sigma: Tensor, prediction: Prediction) -> Tensor:
    """The inverse of `to_estimate`: what a network of this prediction would have said."""
    c_0, c_1 = prediction.weights(alpha, sigma)
    return along(c_0, estimate.x_0) * estimate.x_0 + along(c_1, estimate.eps) * estimate.eps


@dataclass(frozen=True)
class Denoiser:
    """A network made for `schedule`, evaluated on points of `path`.

    The two may differ: (x_0, eps) do not depend on the path, so a network is asked at the time of its own
    schedule that has the path's signal-to-noise ratio, with x rescaled to its own variance
    (METHODS: `x_VP = (alpha + sigma) x_RF`). No output is relearned, none is approximated.
    """

    network: Network
    schedule: Schedule
    prediction: Prediction
    path: Schedule

    def on(self, path: Schedule) -> "Denoiser":
        """The same network on another path."""
        return replace(self, path=path)

    def __call__(self, x: Tensor, t: Tensor, conditions: Conditions) -> Estimate:
        """x `[B, ...]` on `path` at t `[B]`; computed in x's dtype around a float32 network."""
        t = t.double()
        own_t = t if self.path == self.schedule else self.schedule.time_at(self.path.angle(t))
        own_x = x * along(self.schedule.scale(own_t) / self.path.scale(t), x)
        raw = self.network(own_x.float(), self.schedule.network_time(own_t).float(), conditions)
        return to_estimate(raw.to(x.dtype), own_x, *self.schedule.alpha_sigma(own_t), self.prediction)


def guided(denoise: Denoise, unconditional: Conditions, scale: float) -> Denoise:
    """Classifier-free guidance `uncond + scale (cond - uncond)` (Ho & Salimans 2022, eq. 6).

    One batched pass; `unconditional` has batch size 1. The condition `guidance` takes the scale's place where
    it is given.
    """

    def run(x: Tensor, t: Tensor, conditions: Conditions) -> Estimate:
        both = {
            name: torch.cat([value, unconditional[name].expand_as(value)])
            for name, value in conditions.items()
            if name != GUIDANCE
        }
        estimate = denoise(torch.cat([x, x]), torch.cat([t, t]), both)
        (x_0, x_0_free), (eps, eps_free) = (part.chunk(2) for part in estimate)
        own = along(conditions[GUIDANCE], x) if GUIDANCE in conditions else scale
        return Estimate(torch.lerp(x_0_free, x_0, own), torch.lerp(eps_free, eps, own))

    return run


def asked_at(denoise: Denoise, guidance: float) -> Denoise:
    """A denoiser that takes guidance as a condition, asked at this one where none is given."""

    def run(x: Tensor, t: Tensor, conditions: Conditions) -> Estimate:
        return denoise(x, t, {GUIDANCE: t.new_full(t.shape, guidance)} | conditions)

    return run


def clipped(denoise: Denoise, path: Schedule, bound: float) -> Denoise:
    """Clip the estimate of x_0 to [-bound, bound] and keep x_t consistent (Salimans & Ho 2022, section 4)."""

    def run(x: Tensor, t: Tensor, conditions: Conditions) -> Estimate:
        alpha, sigma = path.alpha_sigma(t)
        x_0 = denoise(x, t, conditions).x_0.clamp(-bound, bound)
        return Estimate(x_0, (x - along(alpha, x) * x_0) / along(sigma, x))

    return run
