"""Diversity per prompt: how much do images of one prompt differ across noise samples?

Distances between whole sets barely detect a loss of diversity: the images of a model that draws one fixed
image per prompt still have nearly the right distribution over all prompts.
"""

from collections.abc import Sequence
from statistics import fmean

import torch
from scipy.stats import t as student_t  # type: ignore[import-untyped]
from torch import Tensor
from torch.nn.functional import normalize

from fewstep.evaluation.record import Interval

Groups = Sequence[Sequence[int]]
"""Each group holds the rows of one prompt; all groups have the same size."""


def pairwise_distance(features: Tensor, groups: Groups) -> Interval:
    """Mean Euclidean distance between two images of one prompt, averaged over prompts; features `[N, D]`.

    Unbiased. The interval is Student's over the prompts. Needs at least two groups of at least two rows.
    """
    return mean_interval([torch.pdist(features[list(group)].double()).mean().item() for group in groups])


def vendi_score(features: Tensor, groups: Groups) -> float:
    """Effective number of distinct images per prompt, averaged over prompts (Friedman & Dieng 2023).

    The exponential of the entropy of the eigenvalues of `K / n`, where K holds the cosines of the features,
    centred on the mean of all groups. Between 1 (all equal) and the groups' size, on which it depends.
    """
    rows = sorted({i for group in groups for i in group})
    around = features.double() - features[rows].double().mean(0)
    return fmean(effective_number(around[list(group)]) for group in groups)


def effective_number(x: Tensor) -> float:
    """`exp(-sum l log l)` over the eigenvalues l of the rows' cosine matrix divided by n; x `[n, D]`."""
    unit = normalize(x)
    values = torch.linalg.eigvalsh(unit @ unit.T / len(x)).clamp(min=0)
    return torch.special.entr(values).sum().exp().item()


def mean_interval(values: Sequence[float]) -> Interval:
    """Mean of independent values with Student's 95 % interval."""
    x = torch.tensor(values, dtype=torch.float64)
    mean = x.mean().item()
    half = student_t.ppf(0.975, len(x) - 1) * (x.std() / len(x) ** 0.5).item()
    return Interval(value=mean, low=mean - half, high=mean + half)
