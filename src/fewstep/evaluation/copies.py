"""Copied training images: does a model reproduce its training images instead of drawing new ones?

After the test of Meehan et al. 2020 ("A non-parametric test to detect data-copying in generative models").
"""

from torch import Tensor

from fewstep.evaluation.accuracy import wilson
from fewstep.evaluation.neighbours import nearest
from fewstep.evaluation.record import Interval

EXPECTED = 0.05
"""Share of held-out real images that lie within the distance under which an image counts as copied."""


def nearness_limit(real: Tensor, training: Tensor) -> float:
    """The quantile EXPECTED of the distances from held-out real images to their nearest training image.

    real `[N, D]`, training `[T, D]`: features of held-out and of training images.
    """
    return nearest(real.double(), training.double()).quantile(EXPECTED).item()


def copied(features: Tensor, training: Tensor, limit: float) -> Interval:
    """Share of the generated images nearer than `limit` to a training image, with Wilson's interval.

    EXPECTED for a perfect sampler, 1 for one that repeats its training images.
    """
    near = nearest(features.double(), training.double()) < limit
    return wilson(int(near.sum()), len(near))
