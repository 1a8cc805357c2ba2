"""Samplers, each written as its paper's algorithm: solvers of the probability-flow ODE, and re-noising."""

import itertools
from collections.abc import Callable, Iterator, Sequence
from enum import StrEnum

import torch
from torch import Tensor

from fewstep.diffusion.denoiser import END_TIME, Conditions, Denoise, Estimate, add_noise, expand_like
from fewstep.diffusion.schedules import Schedule

Times = Sequence[float | Tensor]
"""Times of the solver steps, each a number for the whole batch or `[B]`, one per sample."""
Fresh = Callable[[int], Tensor]
"""Step index -> fresh noise `[B, ...]` for that step."""


def trailing(steps: int) -> list[float]:
    """`steps + 1` equally spaced times from 1 (noise) to 0 (data)."""
    if steps < 1:
        raise ValueError(f"steps = {steps}: at least 1 is needed")
    return [1 - i / steps for i in range(steps)] + [0.0]


def shifted(times: Sequence[float], shift: float) -> list[float]:
    """Times `shift t / (1 + (shift - 1) t)` (Esser et al. 2024, eq. 23); above 1, more at high noise."""
    return [shift * t / (1 + (shift - 1) * t) for t in times]


def asked(denoise: Denoise, x: Tensor, t: Tensor, s: Tensor, conditions: Conditions) -> Estimate:
    """The estimate at time t `[B]` for a step that ends at time s `[B]`."""
    return denoise(x, t, conditions | {END_TIME: s})


def ddim_step(estimate: Estimate, path: Schedule, s: Tensor) -> Tensor:
    """Move to time s `[B]` along the estimate (Song et al. 2021, eq. 12, eta = 0).

    On the rectified-flow path this is the Euler step. The exception is a step from beyond the noisiest time
    of the network's schedule: its line starts at the point at which the network was evaluated; see
    `Denoiser.own_alpha_sigma`.
    """
    alpha, sigma = path.alpha_sigma(s)
    return expand_like(alpha, estimate.x_0) * estimate.x_0 + expand_like(sigma, estimate.eps) * estimate.eps


def ddim(denoise: Denoise, x: Tensor, times: Times, conditions: Conditions, path: Schedule) -> Tensor:
    """DDIM from x at times[0] to times[-1]; x `[B, ...]`. With a flow map, this is its multistep sampling."""
    for t, s in pairs(times, x):
        x = ddim_step(asked(denoise, x, t, s, conditions), path, s)
    return x


def dpm_solver_pp_2m(
    denoise: Denoise, x: Tensor, times: Times, conditions: Conditions, path: Schedule
) -> Tensor:
    """DPM-Solver++(2M) (Lu et al. 2022, algorithm 2), first order at both ends.

    One evaluation per step; second order in log(alpha / sigma), with the estimate of the previous step.
    A step of no length leaves a sample as it is, and the sample's next step is of first order.
    """
    previous: tuple[Tensor, Tensor] | None = None
    for t, s in pairs(times, x):
        x_0 = asked(denoise, x, t, s, conditions).x_0
        (_, sigma_t), (alpha_s, sigma_s) = path.alpha_sigma(t), path.alpha_sigma(s)
        step = (path.log_snr(s) - path.log_snr(t)) / 2
        target = x_0
        if previous is not None:
            before, last_step = previous
            usable = torch.isfinite(step) & (last_step > 0)
            slope = expand_like(torch.where(usable, step / (2 * last_step), 0), x)
            target = (1 + slope) * x_0 - slope * before
        x = expand_like(sigma_s / sigma_t, x) * x - expand_like(alpha_s * torch.expm1(-step), x) * target
        previous = x_0, step
    return x


def renoise(
    denoise: Denoise, x: Tensor, times: Times, conditions: Conditions, path: Schedule, fresh: Fresh
) -> Tensor:
    """Predict x_0, then add fresh noise for the next time (multistep consistency sampling, Song et al. 2023,
    algorithm 1; LCM, DMD2).

    This is not an ODE solver. fresh(i): noise `[B, ...]` of step i, counted from 0; the last step needs none.
    """
    for i, (t, s) in enumerate(pairs(times, x)):
        x_0 = asked(denoise, x, t, torch.zeros_like(t), conditions).x_0
        if not s.any():
            return x_0
        x = add_noise(path, x_0, fresh(i), s)
    return x


class Solver(StrEnum):
    """The samplers by name."""

    DDIM = "ddim"
    DPM_SOLVER_PP_2M = "dpm_solver_pp_2m"
    RENOISE = "renoise"


ODE_SOLVERS = {Solver.DDIM: ddim, Solver.DPM_SOLVER_PP_2M: dpm_solver_pp_2m}


def solve(
    solver: Solver,
    denoise: Denoise,
    noise: Tensor,
    times: Times,
    conditions: Conditions,
    path: Schedule,
    fresh: Fresh | None = None,
) -> Tensor:
    """From noise at times[0] = 1 through `times` to data; the state is float64, the result float32.

    fresh: noise that each step but the last adds; only `renoise` uses it. Raises ValueError where `renoise`
    takes several steps without it.

    The start has the path's full scale, also where the path ends before pure noise (SD's alpha_bar_T =
    0.0047), because the network was trained on unit variance there.
    """
    start = noise.double() * expand_like(path.scale(at(times[0], noise)), noise.double())
    if solver is not Solver.RENOISE:
        return ODE_SOLVERS[solver](denoise, start, times, conditions, path).float()
    if fresh is None and len(times) > 2:
        raise ValueError("renoise: each step but the last needs fresh noise")
    return renoise(denoise, start, times, conditions, path, fresh or never).float()


def never(step: int) -> Tensor:
    """Placeholder for fresh noise in one-step sampling, which needs none."""
    raise AssertionError(f"no noise for step {step}")


def at(t: float | Tensor, x: Tensor) -> Tensor:
    """Time t for each sample of x: float64 `[B]`."""
    return torch.as_tensor(t, dtype=torch.float64, device=x.device).expand(len(x)).contiguous()


def pairs(times: Times, x: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Start and end time of each step, for each sample of x: float64 `[B]`."""
    return itertools.pairwise(at(t, x) for t in times)


def straightness(
    denoise: Denoise, noise: Tensor, conditions: Conditions, path: Schedule, steps: int = 16
) -> Tensor:
    """`S = mean_t || (x_1 - x_0) - u(x_t, t) ||^2 / dim` per sample `[B]`, along the model's own DDIM path.

    0 for a perfectly straight flow (Liu et al. 2022, eq. 6; here per element, so that resolutions compare).
    `path` is the rectified flow. `x_1 - x_0` is computed as the mean velocity. This also holds where
    a network's schedule ends before pure noise, so that its first step does not start on the line.
    """
    x, velocities = noise.double(), []
    for t, s in pairs(trailing(steps), x):
        estimate = asked(denoise, x, t, s, conditions)
        velocities.append(estimate.velocity)
        x = ddim_step(estimate, path, s)
    chord = torch.stack(velocities).mean(0)
    return torch.stack([(chord - u).square().flatten(1).mean(1) for u in velocities]).mean(0)
