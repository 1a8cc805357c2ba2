"""Flow map distillation, trained by the loop, against the maps of an ODE in closed form."""

import math
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fewstep.backbones.model import Model, open_model
from fewstep.config.sampling import SamplingConfig
from fewstep.core.hardware import autocast
from fewstep.core.keyed import Key
from fewstep.core.paths import MODELS, TEACHER, TRIPLETS
from fewstep.diffusion.denoiser import END_TIME, Conditions, Denoiser, Network, Prediction, expand_like
from fewstep.diffusion.sampling import STUDENTS, TEACHERS
from fewstep.diffusion.schedules import DiscreteVP, RectifiedFlow, Schedule
from fewstep.diffusion.solvers import Solver, asked, solve, trailing
from fewstep.methods import flow_map
from fewstep.sampling.draw import Sampler
from fewstep.students.learn import Task, learn
from fewstep.students.start import start_and_student
from fewstep.training.loop import train
from fewstep.training.method import Rows
from tests.miniature import draw_triplets, import_miniature, prepare_images
from tests.pipelines import CAPTIONS
from tests.schedules import STABLE_DIFFUSION

DATA = 0.5
"""Standard deviation of Gaussian data."""
FLOW = RectifiedFlow()


@pytest.fixture(autouse=True)
def alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "no")
    monkeypatch.setenv("FEWSTEP_TRACKERS", "")
    monkeypatch.setenv("FEWSTEP_SAVE_EVERY_SECONDS", "3600")


def config(**more: Any) -> flow_map.Config:
    training = {"steps": 1, "batch_size": 1, "learning_rate": 1e-3}
    return flow_map.Config.model_validate(
        {"method": "flow_map", "from": "teacher", "training": training} | more
    )


def own_time(schedule: Schedule, time: Tensor) -> Tensor:
    """The inverse of `schedule.network_time`."""
    return (time.double() + isinstance(schedule, DiscreteVP)) / 1000


class Gain(nn.Module):
    """`g(t, r) x` with a small network g of the times of the rectified flow."""

    def __init__(self, schedule: Schedule) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.schedule = schedule
        self.g = nn.Sequential(nn.Linear(2, 64), nn.Tanh(), nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, 1))

    def forward(self, x: Tensor, time: Tensor, conditions: Conditions) -> Tensor:
        angles = [self.schedule.angle(own_time(self.schedule, s)) for s in (time, conditions[END_TIME])]
        g: Tensor = self.g(torch.stack([FLOW.time_at(angle).float() for angle in angles], 1) * 2 - 1)
        return g * x


def exact(schedule: Schedule) -> Network:
    """`E[eps - x_0 | x_t]`, linear in x_t for Gaussian data."""

    def network(x: Tensor, time: Tensor, conditions: Conditions) -> Tensor:
        alpha, sigma = schedule.alpha_sigma(own_time(schedule, time))
        return expand_like((sigma - alpha * DATA**2) / (alpha**2 * DATA**2 + sigma**2), x) * x

    return network


def deviation(t: float) -> float:
    """Of x_t on the rectified flow; the ODE keeps `x_t / deviation(t)`."""
    return math.hypot((1 - t) * DATA, t)


def model(net: nn.Module, call: Network, schedule: Schedule, inputs: tuple[str, ...], sampling: Any) -> Model:
    """One that predicts velocities."""
    return Model("model", net, Denoiser(call, schedule, Prediction.FLOW, schedule, inputs), None, sampling)


def context_of(schedule: Schedule) -> Any:
    """A method's inputs, with the exact start model."""

    def clean(positions: Sequence[int]) -> tuple[Tensor, Conditions]:
        return DATA * torch.from_numpy(Key(0, "data").normal(positions, (1,))), {}

    start = model(nn.Identity(), exact(schedule), schedule, (), TEACHERS)
    return SimpleNamespace(start=start, key=lambda use: Key(0, use), clean_batch=clean)


@pytest.mark.parametrize(
    ("schedule", "last"), [(FLOW, 1.0), (STABLE_DIFFUSION, 0.936)], ids=["rectified flow", "table"]
)
def test_the_student_learns_the_odes_map_for_any_number_of_steps(schedule: Schedule, last: float) -> None:
    """A network of SD's table takes pure noise for its noisiest point: t = 0.936, with the path's scale."""
    network = Gain(schedule)
    training = {"steps": 500, "batch_size": 64, "learning_rate": 0.005, "betas": (0.9, 0.99)}
    settings = config(training=training, warmup_tangent=100)
    student = flow_map.student_of(settings, model(network, network, schedule, (END_TIME,), STUDENTS))
    train(flow_map.METHOD(settings, context_of(schedule), student), "flow_map", 0, Path("states"))
    noise = torch.linspace(-2, 2, 8)[:, None]
    expected = DATA * math.hypot(1 - last, last) / deviation(last)
    with torch.no_grad():
        for steps in (1, 2, 4):
            drawn = solve(Solver.DDIM, student.denoiser, noise, trailing(steps), {}, FLOW)
            torch.testing.assert_close(drawn / noise, torch.full_like(noise, expected), atol=0.015, rtol=0)


def smooth(x: Tensor, t: Tensor) -> Tensor:
    """Some velocity that is not linear."""
    return torch.sin(1.3 * x + 2 * t[:, None]) * x


def test_the_central_difference_is_the_derivative_along_the_ode() -> None:
    """Exactly for a linear velocity. Else to second order in h inside, to first order at the ends."""
    generator = torch.Generator().manual_seed(0)
    t = torch.tensor([0.5, 1.0, 0.998, 1e-5, 0.4, 0.4, 1.0], dtype=torch.float64)
    r = torch.tensor([0.2, 0.3, 0.0, 0.0, 0.4, 0.397, 1.0], dtype=torch.float64)  # no time is left at last
    x, v = (torch.randn(len(t), 3, dtype=torch.float64, generator=generator) for _ in range(2))

    asked_at = []

    def linear(x: Tensor, t: Tensor) -> Tensor:
        asked_at.append(t)
        return 0.3 * x - 0.8 * t[:, None] + r[:, None]

    difference = flow_map.central_difference(linear, x, t, v, r, 1.0)
    assert torch.allclose(difference[:-1], 0.3 * v[:-1] - 0.8, atol=1e-12) and (difference[-1] == 0).all()
    assert all((r <= at).all() and (at <= 1).all() and (at > 0).all() for at in asked_at)
    by_hand = (1.3 * v + 2) * torch.cos(1.3 * x + 2 * t[:, None]) * x + torch.sin(
        1.3 * x + 2 * t[:, None]
    ) * v
    difference = flow_map.central_difference(smooth, x, t, v, r, 1.0)
    assert torch.allclose(flow_map.derivative(smooth, x, t, v), by_hand, atol=1e-12)
    assert torch.allclose(difference[0], by_hand[0], atol=5e-4)
    assert torch.allclose(difference[:-1], by_hand[:-1], atol=5e-2)


@pytest.mark.parametrize("derivative", ["central", "jvp"])
def test_a_diffusers_network_is_trained_and_measured(derivative: str) -> None:
    prepare_images()
    backbone = import_miniature("sd")
    draw_triplets(backbone)
    training = {"steps": 2, "batch_size": 4, "learning_rate": 0.01, "evaluate_every": 1, "keep": "best"}
    settings = config(training=training, derivative=derivative, warmup_tangent=0)
    learn(Task("distill", "student", "flow_map", settings, [TRIPLETS / "0"], 0))
    made = open_model(MODELS / "student", backbone)
    assert made.denoiser.inputs == (END_TIME,) and made.steps is None
    noise = torch.randn(2, *backbone.latent_shape, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        conditions = backbone.encode_prompts(CAPTIONS)
    drawn = [Sampler(made, backbone, SamplingConfig()).latents(conditions, noise, n) for n in (1, 3)]
    assert all(each.isfinite().all() for each in drawn) and not torch.equal(*drawn)


@pytest.mark.parametrize("family", ["sd", "sdxl"])
def test_the_central_difference_of_a_network_is_its_forward_derivative(family: str) -> None:
    """Of one that is smooth in time: weights of the embedding's periods below 2 pi 100 steps are 0.

    In others the difference averages over what changes within 2h.
    """
    backbone = import_miniature(family)
    settings = config()
    _, made = start_and_student(open_model(TEACHER, backbone), "new", backbone, settings, 0)
    denoiser = flow_map.student_of(settings, made).denoiser
    projection = made.net.get_parameter("time_embedding.cond_proj.weight")
    nn.init.normal_(projection.detach(), std=0.1, generator=torch.Generator().manual_seed(2))
    made.net.get_parameter("time_embedding.linear_1.weight").detach()[:, [0, 1, 4, 5]] = 0
    generator = torch.Generator().manual_seed(0)
    x, v = (
        torch.randn(2, *backbone.latent_shape, dtype=torch.float64, generator=generator) for _ in range(2)
    )
    t, r = torch.tensor([0.7, 0.4]).double(), torch.tensor([0.1, 0.0]).double()
    with torch.no_grad():
        conditions = backbone.encode_prompts(CAPTIONS)

        def u(x: Tensor, at: Tensor) -> Tensor:
            return asked(denoiser, x, at, r, conditions).velocity

        central = flow_map.central_difference(u, x, t, v, r, denoiser.last_time)
        reference = flow_map.derivative(u, x, t, v)
    error = (central - reference).square().mean().sqrt() / reference.square().mean().sqrt()
    assert reference.square().mean() > 0.1 and error < 1e-3


def test_at_r_equal_to_t_the_velocity_of_the_teacher_is_learned() -> None:
    """A student that predicts it has no error, whatever its derivative."""
    student = model(nn.Identity(), exact(FLOW), FLOW, (END_TIME,), STUDENTS)
    for share, small in ((1.0, True), (0.5, False)):
        settings = config(share_r_t=share, share_r_0=0.0, warmup_tangent=0)
        method = flow_map.METHOD(settings, context_of(FLOW), student)
        batch = method.prepare(method.batch(Rows(0, range(64))))
        assert (method.losses("student", batch, 0)["velocity"] < 1e-9) == small


@pytest.mark.parametrize("derivative", ["central", "jvp"])
def test_the_derivative_is_taken_in_float32(derivative: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """In bfloat16 a difference over 0.01 of time would be rounding errors."""
    network = Gain(FLOW)
    student = model(network, network, FLOW, (END_TIME,), STUDENTS)
    method = flow_map.METHOD(config(derivative=derivative), context_of(FLOW), student)
    changes = []
    for precision in ("no", "bf16"):
        monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", precision)
        with torch.no_grad(), autocast():
            changes.append(method.prepare(method.batch(Rows(0, range(64)))).change)
    assert changes[0].abs().max() > 0.01 and torch.equal(*changes)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"share_r_t": 0.6, "share_r_0": 0.5}, "share_r_t \\+ share_r_0 = 1.1: expected at most 1"),
        ({"share_r_0": -0.1}, "greater than or equal to 0"),
        ({"times": "normal"}, "'uniform' or 'u_shaped'"),
        ({"derivative": "forward"}, "'central' or 'jvp'"),
        ({"steps": 0}, "greater than or equal to 1"),
        ({"warmup_tangent": -1}, "greater than or equal to 0"),
        ({"guidance": -1.0}, "greater than or equal to 0"),
    ],
)
def test_impossible_settings_are_refused(more: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        config(**more)
