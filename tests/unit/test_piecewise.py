"""Piecewise rectified flow, trained by the loop, against a solver's maps in closed form."""

import itertools
import math
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fewstep.backbones.model import Model
from fewstep.core.errors import UserError
from fewstep.core.keyed import Key
from fewstep.diffusion.denoiser import Conditions, Denoiser, Network, Prediction, expand_like
from fewstep.diffusion.sampling import STUDENTS, TEACHERS
from fewstep.diffusion.schedules import DiscreteVP, RectifiedFlow, Schedule
from fewstep.diffusion.solvers import Solver, solve, trailing
from fewstep.methods import piecewise
from fewstep.training.loop import train
from tests.schedules import STABLE_DIFFUSION

DATA = 0.5
"""Standard deviation of Gaussian data."""
FLOW = RectifiedFlow()
STEPS = 3
"""Of the teacher in a window."""
LAST = 1 / (1 + math.sqrt(STABLE_DIFFUSION.alphas_cumprod[-1] / (1 - STABLE_DIFFUSION.alphas_cumprod[-1])))
"""Time of the rectified flow at which SD's table ends: `alpha / sigma = (1 - t) / t`."""


@pytest.fixture(autouse=True)
def alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "no")
    monkeypatch.setenv("FEWSTEP_TRACKERS", "")
    monkeypatch.setenv("FEWSTEP_SAVE_EVERY_SECONDS", "3600")


def config(**more: Any) -> piecewise.Config:
    training = {"steps": 1, "batch_size": 1, "learning_rate": 1e-3}
    return piecewise.Config.model_validate(
        {"method": "piecewise", "from": "teacher", "training": training} | more
    )


def own_coefficients(schedule: Schedule, time: Tensor) -> tuple[Tensor, Tensor]:
    """alpha, sigma at a network's time."""
    return schedule.alpha_sigma((time.double() + isinstance(schedule, DiscreteVP)) / 1000)


def exact(schedule: Schedule) -> Network:
    """`E[eps - x_0 | x_t]`, linear in x_t for Gaussian data."""

    def network(x: Tensor, time: Tensor, conditions: Conditions) -> Tensor:
        alpha, sigma = own_coefficients(schedule, time)
        return expand_like((sigma - alpha * DATA**2) / (alpha**2 * DATA**2 + sigma**2), x) * x

    return network


class Lines(nn.Module):
    """In each window the velocity of a straight line: `x_start = gain x_end`, the gain free.

    With length l and `g = (1 - 1 / gain) / l`, `u = g x_start = g x / (1 - (start - t) g)`.
    """

    def __init__(self, schedule: Schedule, bounds: Sequence[float]) -> None:
        super().__init__()
        self.schedule, self.bounds = schedule, torch.tensor(bounds, dtype=torch.float64)
        self.shrink = nn.Parameter(torch.ones(len(bounds) - 1))

    def forward(self, x: Tensor, time: Tensor, conditions: Conditions) -> Tensor:
        alpha, sigma = own_coefficients(self.schedule, time)
        t = sigma / (alpha + sigma)
        k = torch.searchsorted(self.bounds, t - 1e-6) - 1
        start, end = self.bounds[k + 1], self.bounds[k]
        g = (1 - self.shrink[k]) / (start - end)
        return expand_like(g / (1 - (start - t) * g) / (alpha + sigma), x) * x


def gain(start: float, end: float) -> float:
    """`x_end / x_start` of STEPS Euler steps along `v = (t - (1 - t) s^2) / ((1 - t)^2 s^2 + t^2) x`."""
    times = [start + (end - start) * i / STEPS for i in range(STEPS + 1)]
    factors = [
        1 + (s - t) * (t - (1 - t) * DATA**2) / ((1 - t) ** 2 * DATA**2 + t**2)
        for t, s in itertools.pairwise(times)
    ]
    return math.prod(factors)


@pytest.mark.parametrize(
    ("schedule", "last"), [(FLOW, 1.0), (STABLE_DIFFUSION, LAST)], ids=["rectified flow", "table"]
)
@pytest.mark.parametrize("windows", [1, 4])
def test_the_student_learns_the_solvers_map_of_each_window(
    schedule: Schedule, last: float, windows: int
) -> None:
    """Composed they are the teacher's solution in windows x STEPS steps, from noise at the path's scale."""
    bounds = [k / windows for k in range(windows)] + [last]
    network = Lines(schedule, bounds)

    def model(net: nn.Module, call: Network, sampling: Any) -> Model:
        return Model("model", net, Denoiser(call, schedule, Prediction.FLOW, schedule), None, sampling)

    def clean(positions: Sequence[int]) -> tuple[Tensor, Conditions]:
        return DATA * torch.from_numpy(Key(0, "data").normal(positions, (1,))), {}

    training = {"steps": 300, "batch_size": 64, "learning_rate": 0.03, "betas": (0.9, 0.99)}
    settings = config(windows=windows, solver_steps=STEPS, training=training)
    start = model(nn.Identity(), exact(schedule), TEACHERS)
    student = piecewise.student_of(settings, model(network, network, STUDENTS))
    context: Any = SimpleNamespace(start=start, key=lambda use: Key(0, use), clean_batch=clean)
    train(piecewise.METHOD(settings, context, student), "piecewise", 0, Path("states"))
    expected = [gain(start, end) for end, start in itertools.pairwise(bounds)]
    assert network.shrink.tolist() == pytest.approx(expected, abs=2e-3)
    assert student.steps == windows
    noise = torch.linspace(-2, 2, 8)[:, None]
    whole = math.prod(expected) * math.hypot(last, 1 - last)
    fine = [
        end + (start - end) * i / STEPS for end, start in itertools.pairwise(bounds) for i in range(STEPS)
    ]
    with torch.no_grad():
        drawn = solve(Solver.DDIM, student.denoiser, noise, trailing(windows), {}, FLOW)
        teachers = solve(Solver.DDIM, start.denoiser.on(FLOW), noise, [last, *reversed(fine)], {}, FLOW)
    torch.testing.assert_close(drawn, whole * noise, atol=5e-3, rtol=0)
    torch.testing.assert_close(drawn, teachers, atol=5e-3, rtol=0)


@pytest.mark.parametrize(("windows", "last"), [(15, 14 / 15), (16, None)])
def test_windows_beyond_the_table_are_refused(windows: int, last: float | None) -> None:
    net = nn.Identity()
    denoiser = Denoiser(exact(STABLE_DIFFUSION), STABLE_DIFFUSION, Prediction.FLOW, STABLE_DIFFUSION)
    start = Model("model", net, denoiser, None, STUDENTS)
    if last is None:
        with pytest.raises(
            UserError, match=r"windows = 16: the first window lies beyond .* 0\.936; take fewer"
        ):
            piecewise.student_of(config(windows=windows), start)
    else:
        assert last < LAST and piecewise.student_of(config(windows=windows), start).steps == windows


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"windows": 0}, "greater than or equal to 1"),
        ({"solver_steps": 0}, "greater than or equal to 1"),
        ({"solver": "renoise"}, "renoise solves no ODE; take ddim or dpm_solver_pp_2m"),
        ({"solver": "euler"}, "'ddim', 'dpm_solver_pp_2m'"),
        ({"guidance": (4.0, 1.0)}, "0 <= low <= high"),
    ],
)
def test_impossible_settings_are_refused(more: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        config(**more)
