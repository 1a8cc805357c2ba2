"""How far a set of pictures is from another, by their features: Frechet and kernel distance.

The definitions are clean-fid's, the few lines are not: its Frechet distance passes SciPy an argument
that SciPy 1.18 removed and takes minutes at 2048 dimensions; its kernel distance draws from NumPy's
global generator. Tests hold both equal to clean-fid's.
"""

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from fewstep.errors import UserError
from fewstep.evaluation.record import Interval
from fewstep.keyed import Key

ROWS = 1024
"""Rows of a pairwise matrix held in memory at once."""


def frechet_distance(features: Tensor, reference: Tensor, key: Key, resamples: int = 200) -> Interval:
    """Frechet distance of the two sets' Gaussian fits (Heusel et al. 2017), with its 95 % interval.

    features `[N, D]`: of the generated pictures; reference `[M, D]`: of the real ones; N, M > D.
    The value is biased upwards by a term of order D / N: compare only at the same N and reference.

    The interval says where the value at this N would fall with other prompts and noises. It is a
    bootstrap over the generated pictures, keyed by `key`, centred on the value: resampling repeats the
    bias, so the resamples' own quantiles would lie above the value they are meant to surround.

    Raises UserError on features that are not finite or fewer pictures than dimensions.
    """
    x, y = checked(features, "generated"), checked(reference, "reference")
    demand_enough(len(x), len(y), x.shape[1])
    distance = distance_to(*moments(y))
    value = distance(*moments(x)).item()
    spread = torch.stack([distance(*moments(x, resampled(key, i, len(x)))) for i in range(resamples)])
    low, high = (spread.quantile(q).item() - spread.mean().item() for q in (0.025, 0.975))
    return Interval(value=max(value, 0.0), low=max(value + low, 0.0), high=max(value + high, 0.0))


def demand_enough(generated: int, reference: int, width: int) -> None:
    """Raises UserError when so many images have no Frechet distance; known before any is drawn."""
    for count, whose in ((generated, "generated"), (reference, "reference")):
        if count <= width:
            raise UserError(
                f"Frechet distance: {count} {whose} pictures cannot fill {width} features; evaluate more "
                f"than {width} pictures or choose smaller features (the judge's)"
            )


def distance_to(mean: Tensor, covariance: Tensor) -> Callable[[Tensor, Tensor], Tensor]:
    """Squared 2-Wasserstein distance to the Gaussian N(mean `[D]`, covariance `[D, D]`), as a function.

    `|m - m'|^2 + tr(S + S' - 2 (S S')^(1/2))` (Dowson & Landau 1982); the last trace is that of the
    symmetric `(R S R)^(1/2)`, R R = S', which needs no complex root.
    """
    values, vectors = torch.linalg.eigh(covariance)
    root = vectors * values.clamp(min=0).sqrt() @ vectors.T

    def distance(other_mean: Tensor, other: Tensor) -> Tensor:
        shared: Tensor = torch.linalg.eigvalsh(root @ other @ root).clamp(min=0).sqrt().sum()
        return (other_mean - mean).square().sum() + other.trace() + covariance.trace() - 2 * shared

    return distance


def moments(x: Tensor, counts: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Mean `[D]` and unbiased covariance `[D, D]` of x `[N, D]`, row i taken `counts[i]` times."""
    counts = torch.ones(len(x), dtype=torch.long, device=x.device) if counts is None else counts.to(x.device)
    covariance = torch.cov(x.T, fweights=counts).reshape(x.shape[1], x.shape[1])
    return counts.to(x.dtype) @ x / counts.sum(), covariance


def resampled(key: Key, resample: int, n: int) -> Tensor:
    """How often each of n pictures is drawn in a bootstrap resample, `[n]`, summing to n."""
    return torch.from_numpy(key.generator(resample).multinomial(n, np.full(n, 1 / n)))


def kernel_distance(features: Tensor, reference: Tensor) -> float:
    """Squared MMD under the kernel `(x . y / D + 1)^3` (Binkowski et al. 2018, "KID").

    features `[N, D]`, reference `[M, D]`. Unbiased, so it may fall below 0 for equal distributions. Over
    all pairs, where clean-fid averages over random subsets of 1000: the same figure, without their noise.
    """
    x, y = checked(features, "generated"), checked(reference, "reference")
    n, m = len(x), len(y)
    within_x, within_y = ((kernel_sum(z, z) - kernel(z, z).sum().item()) for z in (x, y))
    return within_x / (n * (n - 1)) + within_y / (m * (m - 1)) - 2 * kernel_sum(x, y) / (n * m)


def kernel(x: Tensor, y: Tensor) -> Tensor:
    """`(x . y / D + 1)^3` row by row, `[N]`."""
    return ((x * y).mean(dim=1) + 1) ** 3


def kernel_sum(x: Tensor, y: Tensor) -> float:
    """The kernel summed over all pairs of a row of x and a row of y."""
    return sum(((rows @ y.T / x.shape[1] + 1) ** 3).sum().item() for rows in torch.split(x, ROWS))


def checked(features: Tensor, whose: str) -> Tensor:
    """`features` in float64. Raises UserError when one is not finite."""
    if not features.isfinite().all():
        raise UserError(f"the features of the {whose} pictures are not finite: their model has diverged")
    return features.double()
