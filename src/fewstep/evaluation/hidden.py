"""Hidden attributes: are attributes that captions do not mention distributed as in real images?

The classifier labels generated and real images alike, so that its own errors cancel.
"""

import math
from collections import Counter
from collections.abc import Sequence
from statistics import fmean
from typing import NamedTuple

from scipy.stats import chi2_contingency  # type: ignore[import-untyped]

from fewstep.evaluation.diversity import Groups


class Hidden(NamedTuple):
    """One hidden attribute of a set of images."""

    shares: dict[str, float]
    """Value -> share of the images, in [0, 1]."""
    p_value: float
    """Of the chi-square test whose null hypothesis is equal frequencies in generated and real images."""
    entropy: float | None
    """Mean entropy of the attribute among one prompt's images, in bits; None without groups."""


def hidden_attribute(seen: Sequence[str], real: Sequence[str], groups: Groups | None) -> Hidden:
    """seen, real: the attribute's value in each generated and each real image.

    groups: rows of one prompt each.
    """
    values = sorted({*seen, *real})
    mine, theirs = Counter(seen), Counter(real)
    return Hidden(
        shares={value: mine[value] / len(seen) for value in values},
        p_value=chi_square([mine[value] for value in values], [theirs[value] for value in values]),
        entropy=fmean(entropy([seen[i] for i in group]) for group in groups) if groups else None,
    )


def chi_square(counts: Sequence[int], others: Sequence[int]) -> float:
    """p-value of Pearson's test of homogeneity of two rows of counts; 1 where there is only one value."""
    if len(counts) < 2:
        return 1.0
    return float(chi2_contingency([counts, others], correction=False).pvalue)


def entropy(values: Sequence[str]) -> float:
    """Entropy in bits, corrected for small samples by `(kinds - 1) / 2n` (Miller 1955)."""
    n, counts = len(values), Counter(values)
    plug_in = -sum(c / n * math.log(c / n) for c in counts.values())
    return (plug_in + (len(counts) - 1) / (2 * n)) / math.log(2)
