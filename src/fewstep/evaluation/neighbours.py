"""Precision and recall, density and coverage: are the images plausible, and do they cover all modes?"""

from typing import NamedTuple

import torch
from torch import Tensor

from fewstep.evaluation.frechet import ROWS, checked

NEAREST = 3
"""k of precision and recall (Kynkaanniemi et al. 2019)."""
NEARBY = 5
"""k of density and coverage (Naeem et al. 2020)."""


class Neighbours(NamedTuple):
    """All are shares in [0, 1], except the density."""

    precision: float
    """Share of the generated images that lie in the neighbourhood of a real one."""
    recall: float
    """Share of the real images that lie in the neighbourhood of a generated one."""
    density: float
    """Mean number of real neighbourhoods an image lies in, over NEARBY; about 1 for equal distributions."""
    coverage: float
    """Share of the real images whose neighbourhood contains a generated one."""


def neighbours(features: Tensor, reference: Tensor) -> Neighbours:
    """Kynkaanniemi et al. 2019, eqs. 1-2; Naeem et al. 2020, eqs. 2-3; features `[N, D]`, reference `[M, D]`.

    N, M > NEARBY. Raises UserError on features that are not finite.
    """
    x, y = checked(features, "generated"), checked(reference, "reference")
    radii = neighbourhoods(y, NEARBY)
    inside = torch.zeros(len(y), dtype=torch.long, device=y.device)
    for rows in torch.split(x, ROWS):
        inside += (distances(rows, y) < radii).sum(0)
    return Neighbours(
        precision=share_inside(x, y, NEAREST),
        recall=share_inside(y, x, NEAREST),
        density=inside.sum().item() / (NEARBY * len(x)),
        coverage=(inside > 0).double().mean().item(),
    )


def neighbourhoods(support: Tensor, k: int) -> Tensor:
    """Distance of each point of `support` to its k-th nearest neighbour, `[M]`."""
    assert len(support) > k, f"{len(support)} points have no {k}-th neighbour"
    return torch.cat([radius(rows, support, k) for rows in torch.split(support, ROWS)])


def nearest(points: Tensor, support: Tensor) -> Tensor:
    """Distance of each point to the nearest one of `support`, `[N]`."""
    return torch.cat([distances(rows, support).amin(1) for rows in torch.split(points, ROWS)])


def share_inside(points: Tensor, support: Tensor, k: int) -> float:
    """Share of `points` in a ball around a point of `support`, whose radius reaches its k-th neighbour."""
    radii = neighbourhoods(support, k)
    inside = [(distances(rows, support) <= radii).any(dim=1) for rows in torch.split(points, ROWS)]
    return torch.cat(inside).double().mean().item()


def radius(points: Tensor, support: Tensor, k: int) -> Tensor:
    """Distance of each point, which is itself in `support`, to its k-th nearest neighbour, `[N]`."""
    nearest_and_itself = distances(points, support).topk(k + 1, largest=False).values
    return nearest_and_itself[:, -1]


def distances(x: Tensor, y: Tensor) -> Tensor:
    """Euclidean distances, `[N, M]`, computed from differences, so that equal rows are at exactly 0."""
    return torch.cdist(x, y, compute_mode="donot_use_mm_for_euclid_dist")
