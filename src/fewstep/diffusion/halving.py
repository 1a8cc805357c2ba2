"""The target of progressive distillation (Salimans & Ho 2022, algorithm 2)."""

import torch
from torch import Tensor

from fewstep.diffusion.denoiser import Conditions, Denoise, Denoiser, expand_like
from fewstep.diffusion.solvers import asked, ddim_step


def halving_target(
    teacher: Denoise, x_t: Tensor, i: Tensor, steps: int, conditions: Conditions, student: Denoiser
) -> Tensor:
    """The x_0 `[B, ...]` with which one student step ends where two teacher steps end.

    x_t: `[B, ...]` float64 (with many steps the denominator loses digits by cancellation), on the student's
    path at `t = (i + 1) / steps`. i: `[B]` integers in [0, steps). steps: the student's; the teacher takes
    twice as many.

    The student's eps follows from its x_0 at the point at which its network is evaluated. Where the path is
    noisier than the network's schedule, that point is not x_t. Its coefficients then replace those of x_t.
    """
    path = student.path
    t = (i.double() + 1) / steps
    middle, end = t - 0.5 / steps, i.double() / steps
    x_middle = ddim_step(asked(teacher, x_t, t, middle, conditions), path, middle)
    x_end = ddim_step(asked(teacher, x_middle, middle, end, conditions), path, end)
    (alpha, sigma), (alpha_end, sigma_end) = student.own_alpha_sigma(t), path.alpha_sigma(end)
    ratio = sigma_end / sigma
    numerator = x_end - expand_like(ratio, x_t) * student.own_x(x_t, t)
    return numerator / expand_like(alpha_end - ratio * alpha, x_t)


def truncated_snr(alpha: Tensor, sigma: Tensor) -> Tensor:
    """Loss weight `max(SNR, 1)` (Salimans & Ho 2022, eq. 9), `[B]`."""
    return torch.clamp((alpha / sigma).square(), min=1.0)


def snr_plus_one(alpha: Tensor, sigma: Tensor) -> Tensor:
    """Loss weight `SNR + 1`, the v-space error on a variance-preserving path (eq. 10), `[B]`."""
    return (alpha / sigma).square() + 1.0
