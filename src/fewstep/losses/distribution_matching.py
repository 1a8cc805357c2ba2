"""Losses that match the distribution of a student's samples to a teacher's, in x_0-space.

Both use two denoisers at the noised sample x_tau. real: the teacher's x_0. fake: the x_0 of a denoiser
trained on the student's samples. Their difference is that of the scores, times `sigma^2 / alpha` (Tweedie).
"""

import torch
from torch import Tensor

from fewstep.diffusion.denoiser import expand_like

SMALLEST = 1e-5
"""Least scale by which a difference is divided."""


def distribution_matching(x: Tensor, gradient: Tensor) -> Tensor:
    """`1/2 ||x - sg(x - g)||^2`, mean over elements: its gradient in x is `g` per element.

    Yin et al. 2024 ("One-step diffusion with distribution matching distillation", eq. 8). x, gradient:
    `[B, ...]`; only x receives a gradient. Elements of g that are not finite count as 0.
    """
    target = (x - gradient.to(x).nan_to_num(0.0, 0.0, 0.0)).detach()
    return 0.5 * (x - target).square().mean()


def score_identity(x: Tensor, fake: Tensor, real: Tensor, alpha: float) -> Tensor:
    """`(real - fake) . ((real - x) - alpha (real - fake)) / mean|x - real|`, mean over elements.

    Zhou et al. 2024 ("Score identity distillation", eq. 23). The gradient also passes through both denoisers.
    x, fake, real: `[B, ...]`, functions of x.
    """
    difference = real - fake
    product = difference * ((real - x) - alpha * difference)
    return (product / error_scale(x, real)).mean()


def error_scale(x: Tensor, estimate: Tensor, smallest: float = SMALLEST) -> Tensor:
    """`mean|x - estimate|` per sample, a constant shaped to divide x `[B, ...]` (DMD, eq. 8)."""
    each = (x - estimate).detach().abs().flatten(1).mean(1)
    return expand_like(each.clamp(min=smallest), x)


def divergence_weight(divergence: str, log_ratio: Tensor) -> Tensor:
    """Weight `h(r) = f''(r) r^2` `[B]` of the gradient for an f-divergence; 1 for the reverse KL divergence.

    Xu et al. 2025 ("One-step diffusion models with f-divergence distribution matching", theorem 1).
    log_ratio: log of real over fake density `[B]`, a discriminator's logit. r is clamped to [0.1, 20].
    """
    r = log_ratio.exp().clamp(0.1, 20)
    weights = {
        "reverse_kl": torch.ones_like(r),
        "forward_kl": r,
        "jensen_shannon": r / (r + 1),
        "hellinger": r.sqrt() / 4,
    }
    return weights[divergence]
