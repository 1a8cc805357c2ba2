"""Solves the ODE in one batch for samples that start at different times of a common grid."""

from collections.abc import Sequence

import torch
from torch import Tensor

from fewstep.diffusion.denoiser import END_TIME, Conditions, Denoise, Estimate, expand_like
from fewstep.diffusion.schedules import Schedule
from fewstep.diffusion.solvers import ODE_SOLVERS, Solver, at


def solve_staggered(
    solver: Solver,
    denoise: Denoise,
    x_t: Tensor,
    t: Tensor,
    made_of: Estimate,
    times: Sequence[float],
    conditions: Conditions,
    path: Schedule,
) -> Tensor:
    """From x_t `[B, ...]` at t `[B]`, each a member of `times`, to times[-1]; as if each were solved alone.

    times: decreasing. made_of: the (x_0, eps) `[B, ...]` of which x_t was made; not used where t is times[0].
    A sample is evaluated as often as its own solution has steps. All in float64.
    """
    each = [at(s, x_t).clamp(max=t) for s in times]
    return ODE_SOLVERS[solver](resting(denoise, made_of), x_t, each, conditions, path)


def resting(denoise: Denoise, made_of: Estimate) -> Denoise:
    """A denoiser that evaluates only the samples whose solver step has a length.

    The others have the estimate `made_of`, so that the step leaves them where they are. All processes of an
    FSDP-sharded network have to call it equally often. Where every sample rests, one is evaluated and its
    estimate dropped.
    """

    def run(x: Tensor, t: Tensor, conditions: Conditions) -> Estimate:
        moves = conditions[END_TIME] < t
        rows = moves.nonzero()[:, 0] if moves.any() else torch.zeros(1, dtype=torch.long, device=x.device)
        some = {name: value[rows] for name, value in conditions.items()}
        pairs = zip(made_of, denoise(x[rows], t[rows], some), strict=True)
        mask = expand_like(moves, x).bool()
        return Estimate(*(torch.where(mask, rest.index_copy(0, rows, new), rest) for rest, new in pairs))

    return run
