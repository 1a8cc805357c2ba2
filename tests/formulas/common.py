"""Networks and data on which a method's losses are computed by hand."""

from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from fewstep.core.keyed import Key
from fewstep.data.triplets import TripletBatch
from fewstep.diffusion.denoiser import END_TIME, Conditions, Denoiser, Prediction
from fewstep.diffusion.sampling import STUDENTS, TEACHERS
from fewstep.training.method import Rows

BATCH, SIZE = 64, 3
TRAINING = {"steps": 10, "batch_size": BATCH, "learning_rate": 1.0}
UNCONDITIONAL = 0.3
END = 0.1


class Scaled(nn.Module):
    """`scale x + slope time + END end`, the scale a condition where there is one; end: of the step."""

    def __init__(self, scale: float, slope: float = 0.0) -> None:
        super().__init__()
        self.scale, self.slope = scale, slope

    def forward(self, x: Tensor, time: Tensor, conditions: Conditions) -> Tensor:
        scale, end = conditions.get("scale", torch.tensor(self.scale)), conditions[END_TIME]
        return scale * x + self.slope * time[:, None] + END * end[:, None] / 1000


def model(net: nn.Module, prediction: Prediction, schedule: Any, takes_condition: bool = False) -> Any:
    """What a method uses of a model."""

    def network(x: Tensor, time: Tensor, conditions: Conditions) -> Tensor:
        if takes_condition:  # a teacher's, which knows no end
            return net(x, time, conditions | {END_TIME: torch.zeros_like(time)})
        return net(x, time, {END_TIME: conditions[END_TIME]})

    return SimpleNamespace(
        net=net,
        denoiser=Denoiser(network, schedule, prediction, schedule, () if takes_condition else (END_TIME,)),
        sampling=TEACHERS if takes_condition else STUDENTS,
    )


def samples() -> tuple[TripletBatch, Tensor]:
    """Triplets in float64, each with a condition of its own `[B, 1]`."""
    generator = torch.Generator().manual_seed(0)
    x_0, eps = (torch.randn(BATCH, SIZE, dtype=torch.float64, generator=generator) for _ in range(2))
    scale = torch.rand(BATCH, 1, dtype=torch.float64, generator=generator)
    return TripletBatch(x_0, eps, {"scale": scale}), scale


def context(start: Any = None, **more: Any) -> Any:
    """A method's inputs."""
    pairs, _ = samples()
    return SimpleNamespace(
        start=start,
        key=lambda use: Key(0, f"model/{use}"),
        guidance_interval=None,
        triplet_batch=lambda positions: pairs,
        clean_batch=lambda positions: (pairs.x_0, pairs.conditions),
        unconditional=lambda: {"scale": torch.full((1, 1), UNCONDITIONAL, dtype=torch.float64)},
        **more,
    )


def losses(method: Any, step: int = 0) -> dict[str, float]:
    """Of the first batch."""
    batch = method.prepare(method.batch(Rows(step, range(BATCH))))
    return {name: float(value) for name, value in method.losses("student", batch, step).items()}
