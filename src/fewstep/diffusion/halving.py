"""The target of progressive distillation (Salimans & Ho 2022, algorithm 2)."""

import torch
from torch import Tensor

from fewstep.diffusion.denoiser import Conditions, Denoise, along
from fewstep.diffusion.schedules import Schedule
from fewstep.diffusion.solvers import ddim_step


def halving_target(
    teacher: Denoise, x_t: Tensor, i: Tensor, steps: int, conditions: Conditions, path: Schedule
) -> Tensor:
    """The x_0 at which one student step lands where two teacher steps do.

    x_t: `[B, ...]` float64 (the denominator cancels for many steps), on `path` at `t = (i + 1) / steps`.
    i: `[B]` integers in [0, steps). steps: the student's; the teacher takes twice as many.
    """
    t = (i.double() + 1) / steps
    middle, end = t - 0.5 / steps, i.double() / steps
    x_middle = ddim_step(teacher(x_t, t, conditions), path, middle)
    x_end = ddim_step(teacher(x_middle, middle, conditions), path, end)
    (alpha, sigma), (alpha_end, sigma_end) = path.alpha_sigma(t), path.alpha_sigma(end)
    ratio = sigma_end / sigma
    return (x_end - along(ratio, x_t) * x_t) / along(alpha_end - ratio * alpha, x_t)


def truncated_snr(alpha: Tensor, sigma: Tensor) -> Tensor:
    """Loss weight `max(SNR, 1)` (Salimans & Ho 2022, eq. 9), `[B]`."""
    return torch.clamp((alpha / sigma).square(), min=1.0)


def snr_plus_one(alpha: Tensor, sigma: Tensor) -> Tensor:
    """Loss weight `SNR + 1`, the v-space error on a variance-preserving path (eq. 10), `[B]`."""
    return (alpha / sigma).square() + 1.0
