"""Drift of brightness, saturation, contrast and detail: side effects of distillation and guidance."""

from collections.abc import Mapping

from torch import Tensor

from fewstep.evaluation.diversity import mean_interval
from fewstep.evaluation.record import Interval
from fewstep.measures import TONES


def drift(generated: Tensor, real: Tensor) -> Mapping[str, Interval]:
    """Relative change of each tone against the real images' mean.

    generated, real: `[N, 4]`, paired by prompt. 0: no change; 0.1: 10 % more. The interval is Student's
    over the prompts.
    """
    change = (generated - real).double() / real.double().mean(0).clamp(min=1e-6)
    return {name: mean_interval(change[:, i].tolist()) for i, name in enumerate(TONES)}
