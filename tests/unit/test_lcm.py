"""Consistency distillation, trained by the loop, against a solver's maps in closed form."""

import math
from collections.abc import Sequence
from dataclasses import make_dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fewstep.core.keyed import Key
from fewstep.data.noise import fresh_noise
from fewstep.diffusion.denoiser import Conditions, Denoiser, Prediction, expand_like
from fewstep.diffusion.sampling import STUDENTS
from fewstep.diffusion.schedules import Cosine
from fewstep.diffusion.solvers import Solver, solve, trailing
from fewstep.methods import lcm
from fewstep.training.loop import train

GRID, DATA = 12, 0.5
"""Teacher steps; standard deviation of Gaussian data."""
PATH = Cosine()


@pytest.fixture(autouse=True)
def alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "no")
    monkeypatch.setenv("FEWSTEP_TRACKERS", "")
    monkeypatch.setenv("FEWSTEP_SAVE_EVERY_SECONDS", "3600")


def coefficients(t: Tensor) -> tuple[Tensor, Tensor]:
    """alpha, sigma of the cosine path."""
    return torch.cos(torch.pi * t / 2), torch.sin(torch.pi * t / 2)


def exact(x: Tensor, time: Tensor, conditions: Conditions) -> Tensor:
    """`E[x_0 | x_t] = alpha s^2 / (alpha^2 s^2 + sigma^2) x_t`; time: 1000 t."""
    alpha, sigma = coefficients(time.double() / 1000)
    return expand_like(alpha * DATA**2 / (alpha**2 * DATA**2 + sigma**2), x) * x


class Table(nn.Module):
    """`x_0 = k_i x` with a free number at each time of the grid."""

    def __init__(self) -> None:
        super().__init__()
        self.k = nn.Parameter(torch.zeros(GRID + 1))

    def forward(self, x: Tensor, time: Tensor, conditions: Conditions) -> Tensor:
        return expand_like(self.k[(time / 1000 * GRID).round().long()], x) * x


def gains() -> Tensor:
    """`x_{t - 1/GRID} / x_t` of each DDIM step of the teacher, by the step's end."""
    t = torch.arange(1, GRID + 1, dtype=torch.float64) / GRID
    (alpha, sigma), (alpha_s, sigma_s) = coefficients(t), coefficients(t - 1 / GRID)
    k = alpha * DATA**2 / (alpha**2 * DATA**2 + sigma**2)
    return alpha_s * k + sigma_s * (1 - alpha * k) / sigma


@pytest.mark.parametrize("segments", [1, 3])
def test_the_student_learns_the_solvers_map_to_the_end_of_each_segment(segments: int) -> None:
    network = Table()

    def denoiser(net: Any) -> Denoiser:
        return Denoiser(net, PATH, Prediction.SAMPLE, PATH)

    def clean(positions: Sequence[int]) -> tuple[Tensor, Conditions]:
        return DATA * torch.from_numpy(Key(0, "data").normal(positions, (1,))), {}

    start = SimpleNamespace(net=nn.Identity(), denoiser=denoiser(exact), sampling=STUDENTS)
    student: Any = SimpleNamespace(net=network, denoiser=denoiser(network), steps=None, sampling=STUDENTS)
    context: Any = SimpleNamespace(
        start=start,
        key=lambda use: Key(0, use),
        guidance_interval=None,
        clean_batch=clean,
        backbone=SimpleNamespace(network=lambda net, inputs: net),
    )
    training = {"steps": 500, "batch_size": 128, "learning_rate": 0.03, "betas": (0.9, 0.99)}
    config = lcm.Config.model_validate(
        {"method": "lcm", "from": "teacher", "grid": GRID, "segments": segments, "decay": 0.5}
        | {"training": training}
    )
    train(lcm.METHOD(config, context, student), "lcm", 0, Path("states"))
    x = torch.linspace(-2, 2, 8).double()[:, None]
    n = 20_000
    noise = torch.from_numpy(Key(0, "noise").normal(range(n), (1,)))
    fresh = fresh_noise(Key(0, "fresh"), range(n), (1,), torch.device("cpu"))
    with torch.no_grad():
        sampled = solve(Solver.DDIM, student.denoiser, x, trailing(segments), {}, PATH)
        whole = float(gains().prod())
        assert (sampled / x).flatten().tolist() == pytest.approx([whole] * len(x), abs=5e-3)
        if segments > 1:
            return
        for steps in (1, 2, 4):
            drawn = solve(Solver.RENOISE, student.denoiser, noise, trailing(steps), {}, PATH, fresh)
            # 4 standard errors of a standard deviation of n numbers are 2 %.
            assert float(drawn.std()) == pytest.approx(renoised(steps), rel=0.03), steps


def renoised(steps: int) -> float:
    """Standard deviation of the samples: each prediction has that of x_t times the gains from t to 0."""
    deviation = 1.0
    for step in range(steps):
        alpha, sigma = (float(c) for c in coefficients(torch.tensor(1 - step / steps, dtype=torch.float64)))
        left = GRID - step * GRID // steps
        deviation = float(gains()[:left].prod()) * math.hypot(alpha * deviation, sigma)
    return deviation


def test_a_student_of_segments_takes_a_step_per_segment() -> None:
    values = {"method": "lcm", "from": "teacher", "grid": 12}
    values["training"] = {"steps": 1, "batch_size": 1, "learning_rate": 1e-3}
    model: Any = make_dataclass("Model", [("steps", object), ("sampling", object)])(None, STUDENTS)
    several = lcm.student_of(lcm.Config.model_validate(values | {"segments": 4}), model)
    assert several.steps == 4 and several.sampling.solver is Solver.DDIM
    one = lcm.student_of(lcm.Config.model_validate(values | {"steps": 2}), model)
    assert one.steps == 2 and one.sampling.solver is Solver.RENOISE


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"segments": 5}, "grid = 12: expected a multiple of segments = 5"),
        ({"segments": 4, "steps": 2}, "steps = 2: a student of 4 segments takes"),
        ({"guidance": (4.0, 1.0), "guidance_embedding": True}, "0 <= low <= high"),
        ({"guidance": (-1.0, 1.0), "guidance_embedding": True}, "0 <= low <= high"),
        ({"guidance": -1.0}, "greater than or equal to 0"),
    ],
)
def test_impossible_settings_are_refused(more: dict[str, Any], message: str) -> None:
    training = {"steps": 1, "batch_size": 1, "learning_rate": 1e-3}
    with pytest.raises(ValueError, match=message):
        lcm.Config.model_validate(
            {"method": "lcm", "from": "teacher", "grid": 12, "training": training} | more
        )
