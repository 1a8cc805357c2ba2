"""Exponential moving average of weights, in float32."""

from collections.abc import Mapping

import torch
from torch import Tensor

from fewstep.core.switches import is_on


class Ema:
    """`average <- d average + (1 - d) weights`, `d = min(decay, (1 + n) / (10 + n))` at update n.

    The ramp removes the initial weights from the average in short trainings.
    """

    def __init__(self, average: Mapping[str, Tensor], decay: float) -> None:
        """average: float32 tensors that hold the initial weights, updated in place."""
        self.average, self.decay, self.updates = dict(average), decay, 0

    @torch.no_grad()
    def update(self, weights: Mapping[str, Tensor]) -> None:
        """Update the average with the weights after an optimizer step."""
        assert weights.keys() == self.average.keys(), "EMA and model have different parameters"
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        new = [weights[name].detach().to(average) for name, average in self.average.items()]
        torch._foreach_lerp_(list(self.average.values()), new, 1 - decay)
        self.updates += 1


def beside(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Copies of the weights in float32; in host memory with FEWSTEP_EMA_ON_HOST."""
    where = "cpu" if is_on("EMA_ON_HOST") else None
    return {name: value.detach().clone().to(where, torch.float32) for name, value in weights.items()}
