"""Denoisers: the output of any network converted to (x_0, eps), at any point of any path."""

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
"""Name of the condition `[B]` that holds the guidance scale of each sample, where it is not a constant."""
END_TIME = "end_time"
"""Name of the condition `[B]` that holds the time of the path at which a solver step ends. Solvers set it.
Flow maps `x_s = f(x_t, t, s)` take it (Boffi et al. 2024; Geng et al. 2025); no other network receives it."""

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
    """Estimated data and noise of x_t; both `[B, ...]`, `x_t = alpha x_0 + sigma eps`."""

    x_0: Tensor
    eps: Tensor

    @property
    def velocity(self) -> Tensor:
        """Rectified-flow velocity `u = eps - x_0`."""
        return self.eps - self.x_0


Denoise = Callable[[Tensor, Tensor, Conditions], Estimate]
"""(x_t [B, ...], t [B] in [0, 1], conditions) -> Estimate."""
Applies = Callable[[Tensor], Tensor]
"""t [B] -> whether guidance applies, bool [B]."""


def expand_like(coefficient: Tensor, x: Tensor) -> Tensor:
    """Per-sample coefficients `[B]` shaped and typed to multiply `x` `[B, ...]`."""
    return coefficient.to(x.dtype).reshape(-1, *[1] * (x.ndim - 1))


def add_noise(path: Schedule, x_0: Tensor, eps: Tensor, t: Tensor) -> Tensor:
    """`x_t = alpha x_0 + sigma eps` at t `[B]` of the path; x_0, eps, x_t `[B, ...]`, in x_0's dtype."""
    alpha, sigma = path.alpha_sigma(t)
    return expand_like(alpha, x_0) * x_0 + expand_like(sigma, x_0) * eps.to(x_0)


def to_estimate(raw: Tensor, x: Tensor, alpha: Tensor, sigma: Tensor, prediction: Prediction) -> Estimate:
    """Solve `x = alpha x_0 + sigma eps, raw = c_0 x_0 + c_1 eps` for (x_0, eps).

    Shapes: raw, x `[B, ...]`; alpha, sigma `[B]`. Singular where the prediction adds nothing to x:
    `epsilon` at alpha = 0 (zero terminal SNR), `sample` at sigma = 0.
    """
    c_0, c_1 = prediction.weights(alpha, sigma)
    determinant = alpha * c_1 - sigma * c_0
    x_0 = expand_like(c_1 / determinant, x) * x - expand_like(sigma / determinant, x) * raw
    eps = expand_like(alpha / determinant, x) * raw - expand_like(c_0 / determinant, x) * x
    return Estimate(x_0, eps)


def from_estimate(estimate: Estimate, alpha: Tensor, sigma: Tensor, prediction: Prediction) -> Tensor:
    """The inverse of `to_estimate`: the raw output `[B, ...]` of a network of this prediction."""
    c_0, c_1 = prediction.weights(alpha, sigma)
    return expand_like(c_0, estimate.x_0) * estimate.x_0 + expand_like(c_1, estimate.eps) * estimate.eps


@dataclass(frozen=True)
class Denoiser:
    """A network made for `schedule`, evaluated on points of `path`.

    The two may differ. (x_0, eps) do not depend on the path, so the network is evaluated at the time of its
    own schedule that has the path's signal-to-noise ratio, with x rescaled to its own variance
    (METHODS: `x_VP = (alpha + sigma) x_RF`). The conversion is exact and needs no training.
    """

    network: Network
    schedule: Schedule
    prediction: Prediction
    path: Schedule
    inputs: tuple[str, ...] = ()
    """Inputs of the network beside its time (GUIDANCE, END_TIME), in the order in which they were added."""

    def on(self, path: Schedule) -> "Denoiser":
        """The same network on another path."""
        return replace(self, path=path)

    def without_zero_snr(self) -> "Denoiser":
        """The same network; schedule and path without a zero terminal SNR, as in stock DPM-Solver++."""
        return replace(self, schedule=self.schedule.without_zero_snr(), path=self.path.without_zero_snr())

    @property
    def last_time(self) -> float:
        """The time of `path` at which the network's schedule ends (SD's on the rectified flow: 0.936).

        At noisier times the network is evaluated as at this one, and takes pure noise for its noisiest point.
        """
        return float(self.path.time_at(self.schedule.angle(torch.ones(1, dtype=torch.float64))))

    def onto_schedule(self, x: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """The point of `path`, at most at `last_time`, that the network takes x `[B, ...]` at t `[B]` for.

        The estimate is the same at both. Pure noise at t = 1, where sampling starts, becomes the noisiest
        point of the schedule. Where t is not beyond `last_time`, nothing changes.
        """
        reached = t.clamp(max=self.last_time)
        return x * expand_like(self.path.scale(reached) / self.path.scale(t), x), reached

    def own_time(self, t: Tensor) -> Tensor:
        """The time of `schedule` at which the network is evaluated for t `[B]` of `path`, float64.

        It has the path's signal-to-noise ratio. Where the path is noisier than the whole schedule, it is the
        schedule's noisiest time.
        """
        t = t.double()
        return t if self.path == self.schedule else self.schedule.time_at(self.path.angle(t))

    def own_x(self, x: Tensor, t: Tensor) -> Tensor:
        """x `[B, ...]` at t `[B]` of `path`, rescaled to the variance of the network's own schedule."""
        return x * expand_like(self.schedule.scale(self.own_time(t)) / self.path.scale(t.double()), x)

    def own_alpha_sigma(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """(alpha, sigma) `[B]` of the point at which the network is evaluated.

        The estimate solves `own_x = alpha x_0 + sigma eps`. Where the path is noisier than the whole
        schedule, their ratio is not the path's (SD's network on the rectified flow: beyond t = 0.936).
        """
        return self.schedule.alpha_sigma(self.own_time(t))

    def noise_level(self, t: Tensor) -> Tensor:
        """`sigma / alpha` `[B]` of the point at which the network is evaluated."""
        alpha, sigma = self.own_alpha_sigma(t)
        return sigma / alpha

    def own_conditions(self, conditions: Conditions) -> Conditions:
        """The conditions that the network takes; END_TIME, if among them, in the network's own time."""
        others = {GUIDANCE, END_TIME}.difference(self.inputs)
        own = {name: value for name, value in conditions.items() if name not in others}
        if END_TIME in self.inputs:
            own[END_TIME] = self.schedule.network_time(self.own_time(conditions[END_TIME])).float()
        return own

    def __call__(self, x: Tensor, t: Tensor, conditions: Conditions) -> Estimate:
        """x `[B, ...]` on `path` at t `[B]`; the network runs in float32, the rest in x's dtype."""
        raw = self.raw(x, t, conditions)
        return to_estimate(raw.to(x.dtype), self.own_x(x, t), *self.own_alpha_sigma(t), self.prediction)

    def raw(self, x: Tensor, t: Tensor, conditions: Conditions) -> Tensor:
        """The network's own output `[B, ...]`, of the kind `prediction`; arguments: see `__call__`."""
        time = self.schedule.network_time(self.own_time(t))
        return self.network(self.own_x(x, t).float(), time.float(), self.own_conditions(conditions))

    def exact(self, x_0: Tensor, x_t: Tensor, t: Tensor) -> Tensor:
        """The output of `raw` at x_t `[B, ...]` that means x_0 `[B, ...]`: the target of a denoising loss.

        In float64, since terms cancel at small t. Singular where sigma = 0, at t = 0.
        """
        alpha, sigma = self.own_alpha_sigma(t)
        own_x, x_0 = self.own_x(x_t.double(), t), x_0.double()
        eps = (own_x - expand_like(alpha, x_0) * x_0) / expand_like(sigma, x_0)
        return from_estimate(Estimate(x_0, eps), alpha, sigma, self.prediction)


def guided(
    denoise: Denoise, unconditional: Conditions, scale: float, applies: Applies | None = None
) -> Denoise:
    """Classifier-free guidance `uncond + scale (cond - uncond)` (Ho & Salimans 2022, eq. 6).

    One batched pass; `unconditional` has batch size 1. The condition `guidance`, if present, replaces
    the scale. Samples to which guidance does not apply have no unconditional row in the pass.
    """

    def run(x: Tensor, t: Tensor, conditions: Conditions) -> Estimate:
        inside = None if applies is None else applies(t)
        if inside is None or bool(inside.all()):
            (x_0, eps), (x_0_free, eps_free) = branches(denoise, unconditional, x, t, conditions)
            own = scale_of(conditions, x, scale)
            return Estimate(torch.lerp(x_0_free, x_0, own), torch.lerp(eps_free, eps, own))
        (rows,) = inside.nonzero(as_tuple=True)
        (x_0, eps), (x_0_free, eps_free) = branches(denoise, unconditional, x, t, conditions, rows)
        own = scale_of({name: value[rows] for name, value in conditions.items()}, x, scale)
        return Estimate(
            x_0.index_copy(0, rows, torch.lerp(x_0_free, x_0[rows], own)),
            eps.index_copy(0, rows, torch.lerp(eps_free, eps[rows], own)),
        )

    return run


def branches(
    denoise: Denoise,
    unconditional: Conditions,
    x: Tensor,
    t: Tensor,
    conditions: Conditions,
    rows: Tensor | None = None,
) -> tuple[Estimate, Estimate]:
    """The conditional and the unconditional estimate, in one pass; `unconditional` has batch size 1.

    rows: of the unconditional estimate, `[R]`; None: all.
    """
    some = slice(None) if rows is None else rows
    kept = [name for name in (END_TIME, GUIDANCE) if name in conditions]
    free = unconditional | {name: conditions[name][some] for name in kept}
    both = {name: torch.cat([value, free[name].expand_as(value[some])]) for name, value in conditions.items()}
    x_0, eps = denoise(torch.cat([x, x[some]]), torch.cat([t, t[some]]), both)
    return Estimate(x_0[: len(x)], eps[: len(x)]), Estimate(x_0[len(x) :], eps[len(x) :])


def within(denoiser: Denoiser, interval: tuple[float, float | None] | None) -> Applies | None:
    """Whether `low < sigma / alpha <= high` (Kynkaanniemi et al. 2024); None: at every time.

    high: None for no upper limit. sigma / alpha does not depend on the path, so one interval holds on each.
    """
    if interval is None:
        return None
    low, high = interval

    def applies(t: Tensor) -> Tensor:
        level = denoiser.noise_level(t)
        return (level > low) & (True if high is None else level <= high)

    return applies


def scale_of(conditions: Conditions, x: Tensor, scale: float) -> Tensor | float:
    """The guidance scale: of each sample, shaped to multiply x, where they have one; else `scale`."""
    return expand_like(conditions[GUIDANCE], x) if GUIDANCE in conditions else scale


def asked_at(denoise: Denoise, guidance: float) -> Denoise:
    """A denoiser that takes guidance as a condition, with `guidance` as the default scale."""

    def run(x: Tensor, t: Tensor, conditions: Conditions) -> Estimate:
        return denoise(x, t, {GUIDANCE: t.new_full(t.shape, guidance)} | conditions)

    return run


def clipped(denoise: Denoise, denoiser: Denoiser, bound: float) -> Denoise:
    """Clip the estimate of x_0 to [-bound, bound] (Salimans & Ho 2022, section 4).

    eps changes with x_0, so that `alpha x_0 + sigma eps` is still the point at which the network was
    evaluated. An estimate within the bound is unchanged. denoiser: the one that `denoise` wraps; guidance in
    `denoise` does not change that point.
    """

    def run(x: Tensor, t: Tensor, conditions: Conditions) -> Estimate:
        x_0, eps = denoise(x, t, conditions)
        alpha, sigma = denoiser.own_alpha_sigma(t)
        within = x_0.clamp(-bound, bound)
        # At sigma = 0 the point does not depend on eps, so eps is unchanged.
        ratio = torch.where(sigma > 0, alpha / sigma, 0)
        return Estimate(within, eps + expand_like(ratio, x) * (x_0 - within))

    return run
