"""Moving average of weights, in float32, beside them or with FEWSTEP_EMA_ON_HOST in the host's memory."""

from collections.abc import Mapping

import torch
from torch import Tensor

from fewstep.config.base import is_on


class Ema:
    """`average <- d average + (1 - d) weights`, `d = min(decay, (1 + n) / (10 + n))` at update n.

    The ramp lets the average forget the initial weights in short trainings.
    """

    def __init__(self, weights: Mapping[str, Tensor], decay: float) -> None:
        self.decay = decay
        where = "cpu" if is_on("EMA_ON_HOST") else None
        self.average = {
            name: value.detach().clone().to(where, torch.float32) for name, value in weights.items()
        }

    @torch.no_grad()
    def update(self, weights: Mapping[str, Tensor], n: int) -> None:
        """Fold in the weights after optimiser step n (0-based)."""
        assert weights.keys() == self.average.keys(), "EMA and model have different parameters"
        decay = min(self.decay, (1 + n) / (10 + n))
        new = [weights[name].detach().to(average) for name, average in self.average.items()]
        torch._foreach_lerp_(list(self.average.values()), new, 1 - decay)
