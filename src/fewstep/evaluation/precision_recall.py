"""Improved precision and recall: are the pictures plausible, and are all kinds of them there?"""

from typing import NamedTuple

import torch
from torch import Tensor

from fewstep.evaluation.frechet import ROWS, checked


class PrecisionRecall(NamedTuple):
    """Both in [0, 1]."""

    precision: float
    """Share of the generated pictures that lie where real ones do."""
    recall: float
    """Share of the real pictures that lie where generated ones do."""


def precision_recall(features: Tensor, reference: Tensor, k: int = 3) -> PrecisionRecall:
    """Kynkaanniemi et al. 2019, eqs. 1-2; features `[N, D]`, reference `[M, D]`, N, M > k.

    Raises UserError on features that are not finite.
    """
    x, y = checked(features, "generated"), checked(reference, "reference")
    return PrecisionRecall(precision=share_inside(x, y, k), recall=share_inside(y, x, k))


def share_inside(points: Tensor, support: Tensor, k: int) -> float:
    """Share of `points` inside a ball around some point of `support`, as wide as to its k-th neighbour."""
    assert len(support) > k, f"{len(support)} points have no {k}-th neighbour"
    radii = torch.cat([radius(rows, support, k) for rows in torch.split(support, ROWS)])
    inside = [(distances(rows, support) <= radii).any(dim=1) for rows in torch.split(points, ROWS)]
    return torch.cat(inside).double().mean().item()


def radius(points: Tensor, support: Tensor, k: int) -> Tensor:
    """Distance of each point, itself in `support`, to its k-th nearest other, `[N]`."""
    nearest_and_itself = distances(points, support).topk(k + 1, largest=False).values
    return nearest_and_itself[:, -1]


def distances(x: Tensor, y: Tensor) -> Tensor:
    """Euclidean, `[N, M]`; by differences, so that equal rows are at distance 0 exactly."""
    return torch.cdist(x, y, compute_mode="donot_use_mm_for_euclid_dist")
