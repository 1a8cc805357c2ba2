"""Training points: clean samples with fresh noise, on a time grid or at any time."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fewstep.core.hardware import upload
from fewstep.diffusion.denoiser import Conditions, add_noise
from fewstep.diffusion.schedules import Schedule
from fewstep.students.context import Context


@dataclass(frozen=True)
class Noised:
    """x_t `[B, ...]` float64 at `t = (i + 1) / steps`, i `[B]` integers in [0, steps), and conditions."""

    x_t: Tensor
    i: Tensor
    conditions: Conditions


def noised(context: Context, path: Schedule, positions: Sequence[int], steps: int) -> Noised:
    """`noised_at` at a time of the grid, i uniform. Random streams: `step` and `noise` of the training."""
    uniform = upload(torch.from_numpy(context.key("step").uniform(positions)[:, 0]))
    i = (uniform * steps).floor()
    x_t, conditions = noised_at(context, path, positions, (i + 1) / steps)
    return Noised(x_t, i, conditions)


def noised_at(
    context: Context, path: Schedule, positions: Sequence[int], t: Tensor
) -> tuple[Tensor, Conditions]:
    """`x_t = alpha x_0 + sigma eps` `[B, ...]` float64 at t `[B]`, and conditions; see `with_fresh_noise`."""
    x_0, eps, conditions = with_fresh_noise(context, positions)
    return add_noise(path, x_0, eps, t), conditions


def with_fresh_noise(context: Context, positions: Sequence[int]) -> tuple[Tensor, Tensor, Conditions]:
    """(x_0, eps, conditions of x_0), both `[B, ...]` float64.

    x_0 is from the method's data, eps fresh. eps is independent of x_0 (Salimans & Ho 2022, algorithm 2),
    also for triplets, which have noise of their own. Random stream: `noise` of the training.
    """
    x_0, conditions = context.clean_batch(positions)
    x_0 = x_0.double()
    eps = upload(torch.from_numpy(context.key("noise").normal(positions, x_0.shape[1:]))).double()
    return x_0, eps, conditions
