"""What one step learns, by optimisation, where noises beside each other lead to two images."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from fewstep.data.triplets import TripletBatch
from fewstep.diffusion.denoiser import Conditions, Denoiser, Prediction
from fewstep.diffusion.schedules import RectifiedFlow
from fewstep.methods.direct import Config, Direct


class Answer(torch.nn.Module):
    """The same image for every noise: velocity `eps - answer` at t = 1."""

    def __init__(self, begin: float) -> None:
        super().__init__()
        self.answer = torch.nn.Parameter(torch.full((1,), begin))

    def forward(self, x: Tensor, time: Tensor, conditions: Conditions) -> Tensor:
        return x - self.answer


@pytest.mark.parametrize(
    ("loss", "of_ten", "learned"),
    [("l2", 7, 0.4), ("l1", 7, 1.0), ("log_l1", 7, 1.0), ("l2", 5, 0.0), ("l1", 5, 0.2), ("log_l1", 5, 1.0)],
)
def test_l2_learns_the_average_l1_the_image_of_most_and_its_logarithm_decides(
    loss: str, of_ten: int, learned: float
) -> None:
    """From 0.2, so many of ten noises lead to 1, the others to -1.

    Of seven the mean is 0.4 and the median 1. Of five it is 0, any answer between is a median, and the
    logarithm is least at the two ends.
    """
    net, flow = Answer(0.2), RectifiedFlow()
    training = {"steps": 1, "batch_size": 1, "learning_rate": 1.0}
    config = Config.model_validate(
        {"method": "direct", "from": "teacher", "latent_loss": loss, "training": training}
    )
    context: Any = SimpleNamespace(backbone=SimpleNamespace(network=lambda network: network))
    student: Any = SimpleNamespace(net=net, denoiser=Denoiser(net, flow, Prediction.FLOW, flow))
    method = Direct(config, context, student)
    eps = torch.randn(1000, 1, generator=torch.Generator().manual_seed(0))
    pairs = TripletBatch(torch.where(torch.arange(1000) % 10 < of_ten, 1.0, -1.0)[:, None], eps, {})
    optimizer = torch.optim.Adam(net.parameters(), lr=0.01)
    for step in range(400):
        optimizer.zero_grad()
        torch.stack(list(method.losses("student", pairs, step).values())).sum().backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    assert net.answer.item() == pytest.approx(learned, abs=0.02)
