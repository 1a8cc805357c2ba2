"""Stops a training whose loss or gradients are not finite, or have exploded."""

import math
from dataclasses import dataclass

FACTOR = 1000.0
"""A value this many times its running mean has exploded."""
RESTING = 0.1
"""The running mean counts as at least this share of its own peak."""
SETTLED = 50
"""Values seen before the running mean is trusted."""
DECAY = 0.98


@dataclass
class ExplosionGuard:
    """Follows the size of one number: a loss, or the norm of a group's gradients.

    Size is the absolute value, so that a negative loss (WGAN, a logarithm) is guarded too. A loss may rest at
    0, as a saturated hinge discriminator's does, and come back to its usual size: the running mean is never
    taken for less than a tenth of its peak.
    """

    mean: float = 0.0
    peak: float = 0.0
    count: int = 0

    def accepts(self, value: float) -> bool:
        """Whether training may go on after this value, which then counts as seen."""
        size = abs(value)
        usual = max(self.mean, RESTING * self.peak)
        if not math.isfinite(value) or (self.count > SETTLED and size > FACTOR * usual > 0):
            return False
        self.mean = size if self.count == 0 else DECAY * self.mean + (1 - DECAY) * size
        self.count += 1
        if self.count > SETTLED:
            self.peak = max(self.peak, self.mean)
        return True
