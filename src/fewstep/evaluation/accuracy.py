"""Prompt accuracy: does the image show what the prompt asks for?"""

from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import NamedTuple

from scipy.stats import binomtest  # type: ignore[import-untyped]

from fewstep.core.errors import UserError
from fewstep.evaluation.record import Interval

Labels = Mapping[str, str]
"""Attribute -> value."""


class PromptAccuracy(NamedTuple):
    """Shares in [0, 1] of the images whose prompt is labelled."""

    prompt: Interval
    """All attributes recognised, with Wilson's 95 % interval."""
    attributes: dict[str, float]
    """Accuracy of each attribute, over the prompts that have it."""


def prompt_accuracy(recognised: Sequence[Labels], wanted: Sequence[Labels | None]) -> PromptAccuracy | None:
    """Compare what the classifier recognised in each image with its prompt's labels (None: unlabelled).

    Returns None where no prompt is labelled. Raises UserError when the classifier does not know an attribute.
    """
    pairs = [(seen, labels) for seen, labels in zip(recognised, wanted, strict=True) if labels]
    if not pairs:
        return None
    unknown = sorted({attribute for seen, labels in pairs for attribute in labels.keys() - seen.keys()})
    if unknown:
        raise UserError(f"the judge does not know {', '.join(unknown)}; train it on data with these labels")
    right = [
        {attribute: seen[attribute] == labels[attribute] for attribute in labels} for seen, labels in pairs
    ]
    attributes = sorted({attribute for row in right for attribute in row})
    return PromptAccuracy(
        prompt=wilson(sum(all(row.values()) for row in right), len(right)),
        attributes={name: fmean(row[name] for row in right if name in row) for name in attributes},
    )


def wilson(successes: int, trials: int) -> Interval:
    """A share with Wilson's 95 % score interval (Wilson 1927), valid also near 0 and 1."""
    bounds = binomtest(successes, trials).proportion_ci(0.95, method="wilson")
    return Interval(value=successes / trials, low=float(bounds.low), high=float(bounds.high))
