"""Training points on a time grid: clean samples with fresh noise."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fewstep.core.hardware import device
from fewstep.diffusion.denoiser import Conditions, expand_like
from fewstep.diffusion.schedules import Schedule
from fewstep.students.context import Context


@dataclass(frozen=True)
class Noised:
    """x_t `[B, ...]` float64 at `t = (i + 1) / steps`, i `[B]` integers in [0, steps), and conditions."""

    x_t: Tensor
    i: Tensor
    conditions: Conditions


def noised(context: Context, path: Schedule, positions: Sequence[int], steps: int) -> Noised:
    """`x_t = alpha x_0 + sigma eps`, x_0 from the method's data, eps fresh, i uniform.

    eps is independent of x_0 (Salimans & Ho 2022, algorithm 2), also for triplets, which have noise of their
    own. Random streams: `step` and `noise` of the training.
    """
    x_0, conditions = context.clean_batch(positions)
    x_0 = x_0.double()
    uniform = torch.from_numpy(context.key("step").uniform(positions)[:, 0]).to(device())
    i = (uniform * steps).floor()
    eps = torch.from_numpy(context.key("noise").normal(positions, x_0.shape[1:])).to(x_0)
    alpha, sigma = path.alpha_sigma((i + 1) / steps)
    return Noised(expand_like(alpha, x_0) * x_0 + expand_like(sigma, eps) * eps, i, conditions)
