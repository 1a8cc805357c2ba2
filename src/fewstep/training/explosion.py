"""Stops a training whose loss or gradients are not finite, or have exploded."""

import math
from dataclasses import dataclass

FACTOR = 1000.0
"""A value this many times its running mean has exploded."""
RESTING = 0.1
"""Lower bound of the running mean, as a share of its peak."""
SETTLED = 50
"""Values seen before the running mean is trusted."""
DECAY = 0.98


@dataclass
class ExplosionGuard:
    """Tracks the absolute value of one number: a loss, or the norm of a group's gradients.

    The absolute value guards negative losses too (WGAN, a logarithm). A loss may stay at 0 for a while, as
    that of a saturated hinge discriminator does, and then return to its usual size. So the running mean
    counts as at least a tenth of its peak.
    """

    mean: float = 0.0
    peak: float = 0.0
    count: int = 0

    def accepts(self, value: float) -> bool:
        """Whether training may continue after this value; if so, it enters the running mean."""
        size = abs(value)
        usual = max(self.mean, RESTING * self.peak)
        if not math.isfinite(value) or (self.count > SETTLED and size > FACTOR * usual > 0):
            return False
        self.mean = size if self.count == 0 else DECAY * self.mean + (1 - DECAY) * size
        self.count += 1
        if self.count > SETTLED:
            self.peak = max(self.peak, self.mean)
        return True
