"""Frechet distance between two sets of images, from Gaussian fits of their features.

The definition is that of clean-fid, the implementation is not: clean-fid passes SciPy an argument that SciPy
1.18 removed, and takes minutes at 2048 dimensions. A test checks that both give the same value.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from fewstep.core.errors import UserError

ROWS = 1024
"""Rows of a pairwise matrix held in memory at once."""


def frechet_distance(features: Tensor, reference: Tensor) -> float:
    """Frechet distance of the two sets' Gaussian fits (Heusel et al. 2017, "FID").

    features `[N, D]`: of the generated images; reference `[M, D]`: of the real ones; N, M > D.
    The value is biased upwards by a term of order D / N, which does not cancel in a ratio. Compare it only
    at the same N and reference, and next to the floor (real images against real ones). It has no interval;
    the kernel distance has one.

    Raises UserError on features that are not finite or fewer images than dimensions.
    """
    x, y = checked(features, "generated"), checked(reference, "reference")
    demand_enough(len(x), len(y), x.shape[1])
    return max(distance_to(*moments(y))(*moments(x)).item(), 0.0)


def demand_enough(generated: int, reference: int, width: int) -> None:
    """Raises UserError when there are too few images for a Frechet distance; called before any is drawn."""
    for count, whose in ((generated, "generated"), (reference, "reference")):
        if count <= width:
            raise UserError(
                f"Frechet distance: {count} {whose} images cannot fill {width} features; evaluate more "
                f"than {width} images or choose smaller features (the judge's)"
            )


def distance_to(mean: Tensor, covariance: Tensor) -> Callable[[Tensor, Tensor], Tensor]:
    """Squared 2-Wasserstein distance to the Gaussian N(mean `[D]`, covariance `[D, D]`), as a function.

    `|m - m'|^2 + tr(S + S' - 2 (S S')^(1/2))` (Dowson & Landau 1982); the last trace equals that of
    the symmetric `(R S R)^(1/2)` with R R = S', which needs no complex root.
    """
    values, vectors = torch.linalg.eigh(covariance)
    root = vectors * values.clamp(min=0).sqrt() @ vectors.T

    def distance(other_mean: Tensor, other: Tensor) -> Tensor:
        shared: Tensor = torch.linalg.eigvalsh(root @ other @ root).clamp(min=0).sqrt().sum()
        return (other_mean - mean).square().sum() + other.trace() + covariance.trace() - 2 * shared

    return distance


def moments(x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean `[D]` and unbiased covariance `[D, D]` of x `[N, D]`."""
    return x.mean(0), torch.cov(x.T).reshape(x.shape[1], x.shape[1])


def checked(features: Tensor, whose: str) -> Tensor:
    """`features` in float64. Raises UserError when one is not finite."""
    if not features.isfinite().all():
        raise UserError(f"the features of the {whose} images are not finite: their model has diverged")
    return features.double()
