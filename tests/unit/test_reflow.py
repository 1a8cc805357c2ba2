"""Reflow, by optimisation, against the straight maps that are known in closed form."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from fewstep.data.triplets import TripletBatch
from fewstep.diffusion.denoiser import Conditions, Denoiser, Estimate, Prediction, expand_like
from fewstep.diffusion.schedules import RectifiedFlow
from fewstep.diffusion.solvers import Solver, solve, straightness, trailing
from fewstep.methods.reflow import on_the_students_line, pseudo_huber, velocity_error
from tests.schedules import STABLE_DIFFUSION

STEPS = 16
SIGMA_DATA = 0.5


class Learner(torch.nn.Module):
    """Velocity `k(t) x + m(t) sign(x)`, its two numbers free at each of the times 1/16, 2/16 ... 1."""

    def __init__(self) -> None:
        super().__init__()
        self.k = torch.nn.Parameter(torch.zeros(STEPS + 1, dtype=torch.float64))
        self.m = torch.nn.Parameter(torch.zeros(STEPS + 1, dtype=torch.float64))

    def forward(self, x: Tensor, t: Tensor, conditions: Conditions) -> Estimate:
        i = (t * STEPS).round().long()
        u = expand_like(self.k[i], x) * x + expand_like(self.m[i], x) * x.sign()
        return Estimate(x - expand_like(t, x) * u, x + expand_like(1 - t, x) * u)


def squared(error: Tensor) -> Tensor:
    return error.square().mean()


@pytest.mark.parametrize("loss", [pseudo_huber, squared], ids=["improved", "plain"])
@pytest.mark.parametrize("data", [lambda eps: SIGMA_DATA * eps, torch.sign], ids=["gaussian", "two points"])
def test_reflow_learns_the_straight_map(
    data: Callable[[Tensor], Tensor], loss: Callable[[Tensor], Tensor]
) -> None:
    """The pairs are those of the exact ODE: `x_0 = s eps` for N(0, s^2), `x_0 = sign(eps)` for +-1."""
    generator = torch.Generator().manual_seed(0)
    eps = torch.randn(64 * STEPS, 1, dtype=torch.float64, generator=generator)
    pairs = TripletBatch(data(eps), eps, {})
    t = (torch.arange(len(eps)) % STEPS + 1).double() / STEPS
    learner = Learner()
    optimizer = torch.optim.LBFGS(
        learner.parameters(), max_iter=500, history_size=40, line_search_fn="strong_wolfe"
    )

    def closure() -> Tensor:
        optimizer.zero_grad()
        value = loss(velocity_error(learner, pairs, t))
        value.backward()  # type: ignore[no-untyped-call]
        return value

    for _ in range(3):
        optimizer.step(closure)  # type: ignore[no-untyped-call]
    noise = torch.randn(256, 1, dtype=torch.float64, generator=generator)
    with torch.no_grad():
        assert straightness(learner, noise, {}, RectifiedFlow(), STEPS).max() < 1e-5
        for steps in (1, STEPS):
            drawn = solve(Solver.DDIM, learner, noise, trailing(steps), {}, RectifiedFlow())
            assert torch.allclose(drawn, data(noise).float(), atol=3e-3)


class TableNetwork(torch.nn.Module):
    """`k x + m` with two free numbers at each of the times that a flow of four steps asks SD's table for."""

    def __init__(self) -> None:
        super().__init__()
        self.k, self.m = (torch.nn.Parameter(torch.zeros(4)) for _ in range(2))
        self.times = STABLE_DIFFUSION.network_time(
            STABLE_DIFFUSION.time_at(RectifiedFlow().angle(torch.arange(1, 5).double() / 4))
        )

    def forward(self, x: Tensor, time: Tensor, conditions: Conditions) -> Tensor:
        i = (time[:, None] - self.times).abs().argmin(1)
        return expand_like(self.k[i], x) * x + expand_like(self.m[i], x)


@pytest.mark.parametrize("prediction", [Prediction.EPSILON, Prediction.V])
def test_reflow_of_a_table_that_ends_before_pure_noise_learns_all_of_the_map(prediction: Prediction) -> None:
    """Learning the velocity from pure noise instead, it drew 0.936 of x_0 in one step."""
    generator = torch.Generator().manual_seed(0)
    eps = torch.randn(256, 1, generator=generator)
    network, flow = TableNetwork(), RectifiedFlow()
    student = Denoiser(network, STABLE_DIFFUSION, prediction, flow)
    pairs, t = TripletBatch(1 + 0.5 * eps, eps, {}), (torch.arange(256) % 4 + 1) / 4
    pairs, t = on_the_students_line(student, pairs, t)
    optimizer = torch.optim.LBFGS(network.parameters(), max_iter=500, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimizer.zero_grad()
        value = squared(velocity_error(student, pairs, t))
        value.backward()  # type: ignore[no-untyped-call]
        return value

    optimizer.step(closure)  # type: ignore[no-untyped-call]
    noise = torch.randn(256, 1, generator=generator)
    with torch.no_grad():
        for steps in (1, 2, 4):
            drawn = solve(Solver.DDIM, student, noise, trailing(steps), {}, flow)
            torch.testing.assert_close(drawn, 1 + 0.5 * noise, atol=3e-3, rtol=0)
