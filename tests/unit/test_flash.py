"""Flash Diffusion, trained by the loop on an exactly known teacher; phases, starts and shared solution."""

import math
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import chi2  # type: ignore[import-untyped]
from tools.imports import ROOT
from torch import Tensor, nn

from fewstep.chain import load_chain
from fewstep.checks.recipe import warnings
from fewstep.core.keyed import Key
from fewstep.diffusion.denoiser import Conditions, Denoiser, Estimate, Prediction
from fewstep.diffusion.sampling import STUDENTS
from fewstep.diffusion.schedules import Cosine, DiscreteVP, RectifiedFlow, Schedule
from fewstep.diffusion.solvers import ODE_SOLVERS, Solver, trailing
from fewstep.diffusion.staggered import solve_staggered
from fewstep.methods import flash
from fewstep.students.perceptual import centre
from fewstep.training.loop import train
from fewstep.training.method import Rows
from tests.mixtures import SHAPE, Mixture, Toy, learn_mixture, toy_model

MODES = ((0, 0, 0.5, 0.5), (0.1, 0.3, 0.3, 0.3), (0.25, 0.25, 0.25, 0.25), (0.4, 0.2, 0.2, 0.2))
"""The paper's mixtures, from pure noise to low noise, in the order of the phases."""
TRAINING = {"steps": 8, "batch_size": 2, "learning_rate": 0.01}
QUICK = {"guidance": 1.0, "distance": "l2", "grid": 4, "training": TRAINING}
MIXTURE = Mixture(0.5, -1.0, 1.0, 0.3)


@pytest.fixture(autouse=True)
def alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "no")
    monkeypatch.setenv("FEWSTEP_TRACKERS", "")
    monkeypatch.setenv("FEWSTEP_SAVE_EVERY_SECONDS", "3600")


def config_of(**values: Any) -> flash.Config:
    return flash.Config.model_validate({"method": "flash", "from": "teacher"} | QUICK | values)


def method_of(config: flash.Config, **more: Any) -> flash.Flash:
    """The method with a toy teacher and student on images of the mixture."""
    start, student = toy_model(Toy(MIXTURE)), toy_model(Toy(MIXTURE))

    def clean(positions: Sequence[int]) -> tuple[Tensor, Conditions]:
        return MIXTURE.images(Key(0, "modes"), positions), {}

    context: Any = SimpleNamespace(start=start, key=lambda use: Key(0, use), clean_batch=clean, **more)
    return flash.METHOD(config, context, flash.student_of(config, student))


@pytest.mark.parametrize("mixture", [MIXTURE, Mixture(0.3, -0.8, 1.0, 0.35)], ids=["equal", "unequal"])
def test_a_one_step_student_has_the_teachers_distribution(mixture: Mixture, tmp_path: Path) -> None:
    """All terms, at the paper's mixtures and adversarial weights.

    The matching term has a tenth of the paper's weights. The student replaces the score of its samples there,
    which it is not: here the paper's weights raise the distance from 0.04 to 0.07.
    """
    weights = zip(MODES, (0.0, 0.1, 0.2, 0.3), (0.0, 0.03, 0.05, 0.07), strict=True)
    phases = [{"modes": modes, "adversarial": a, "matching": m} for modes, a, m in weights]
    values = QUICK | {"grid": 16, "steps": 1, "phases": phases, "discriminator": {"learning_rate": 1e-3}}
    training = {"steps": 300, "batch_size": 4, "learning_rate": 0.01}
    distance, share = learn_mixture("flash", mixture, tmp_path, values | {"training": training})
    assert distance < 0.05 and abs(share) < 0.05


@pytest.mark.parametrize("grid", [16, 32])
@pytest.mark.parametrize("number", range(4))
def test_starts_follow_the_mixture_of_their_phase(number: int, grid: int) -> None:
    many = 6000
    method = method_of(config_of(grid=grid))
    method.context.clean_batch = lambda positions: (torch.zeros(len(positions), 1), {})  # type: ignore[method-assign]
    batch = method.batch(Rows(2 * number, range(many)))
    starts = np.rint((1 - batch.t.numpy()) * grid).astype(int)
    assert np.allclose(batch.t.numpy(), 1 - starts / grid, atol=1e-12)
    i = np.arange(grid)
    weights = np.sum([w * np.exp(-((i - m * grid // 4) ** 2) / 0.5) for m, w in enumerate(MODES[number])], 0)
    expected = many * weights / weights.sum()
    drawn = np.bincount(starts, minlength=grid)
    rare = expected < 5
    assert drawn[rare].sum() <= expected[rare].sum() + 5 * math.sqrt(expected[rare].sum() + 1)
    statistic = ((drawn - expected)[~rare] ** 2 / expected[~rare]).sum()
    assert statistic < chi2.ppf(0.999, (~rare).sum())


def test_phases_begin_at_their_shares_of_the_updates() -> None:
    config = config_of(training=TRAINING | {"steps": 20_000})
    begins = [
        config.phases.index(config.phase(step)) for step in (0, 4999, 5000, 9999, 10_000, 15_000, 19_999)
    ]
    assert begins == [0, 0, 1, 1, 2, 3, 3]
    assert [phase.modes for phase in config.phases] == list(MODES)
    assert [phase.matching for phase in config.phases] == [0, 0.3, 0.5, 0.7]
    assert [phase.adversarial for phase in config.phases] == [0, 0.1, 0.2, 0.3]
    two = [{"modes": [1], "share": 3}, {"modes": [1], "matching": 1.0}]
    few = config_of(training=TRAINING | {"steps": 10}, phases=two)
    assert [few.phase(step).matching for step in range(11)] == [0] * 8 + [1] * 3


def test_a_step_depends_on_nothing_but_its_rows_and_number() -> None:
    method = method_of(config_of())
    for step in (0, 7):
        whole = method.batch(Rows(step, range(6)))
        part = method.batch(Rows(step, [4]))
        assert torch.equal(part.x_t[0], whole.x_t[4]) and torch.equal(part.eps[:, 0], whole.eps[:, 4])
        assert torch.equal(part.uniform[0], whole.uniform[4]) and part.t[0] == whole.t[4]


def test_a_start_at_index_0_is_pure_noise() -> None:
    """Also where the path ends before: the teacher was trained on unit variance there."""
    path = DiscreteVP(tuple(np.linspace(0.99, 0.2, 50)))
    method = method_of(config_of(phases=[{"modes": [1]}]))
    method.path = path
    batch = method.batch(Rows(0, range(50)))
    pure = batch.t == 1
    assert 0 < pure.sum() < 50 and torch.equal(batch.x_t[pure], batch.eps[0][pure])
    alpha, sigma = (c[~pure][:, None, None, None] for c in path.alpha_sigma(batch.t))
    assert torch.allclose(batch.x_t[~pure], alpha * batch.z[~pure] + sigma * batch.eps[0][~pure])


class Counted(nn.Module):
    """`E[x_0 | x_t]` of Gaussian data, element by element; counts calls and samples."""

    def __init__(self) -> None:
        super().__init__()
        self.calls = self.samples = 0

    def forward(self, x: Tensor, time: Tensor, conditions: Conditions) -> Tensor:
        self.calls, self.samples = self.calls + 1, self.samples + len(x)
        scale = conditions["scale"] / (1 + time[:, None] / 1000)
        return scale * x


@pytest.mark.parametrize(
    ("schedule", "path"),
    [
        (Cosine(), Cosine()),
        (RectifiedFlow(), RectifiedFlow()),
        (DiscreteVP(tuple(np.linspace(0.999, 0.005, 1000))), Cosine()),
        (DiscreteVP(tuple(np.linspace(0.99, 0.2, 50))), RectifiedFlow()),
    ],
    ids=["cosine", "flow", "table", "table-that-ends-early"],
)
@pytest.mark.parametrize("solver", ODE_SOLVERS)
def test_a_staggered_solution_is_that_of_each_sample_alone(
    solver: Solver, schedule: Schedule, path: Schedule
) -> None:
    """To the bit, with as many evaluations, and one call of the network for each step of the grid."""
    steps, starts = 6, torch.tensor([5, 0, 3, 1, 3])
    generator = torch.Generator().manual_seed(0)
    z, eps = (torch.randn(5, 3, dtype=torch.float64, generator=generator) for _ in range(2))
    conditions = {"scale": torch.rand(5, 1, generator=generator)}
    net, times = Counted(), trailing(steps)
    denoiser = Denoiser(net, schedule, Prediction.SAMPLE, path)
    t = torch.tensor(times, dtype=torch.float64)[starts]
    alpha, sigma = (c[:, None] for c in path.alpha_sigma(t))
    x_t = alpha * z + sigma * eps
    for chosen in (
        torch.arange(5),
        torch.tensor([0]),
        torch.tensor([3]),
    ):  # with a sample at pure noise, and without
        made_of = Estimate(z[chosen], eps[chosen])
        some = {"scale": conditions["scale"][chosen]}
        net.calls = net.samples = 0
        ends = solve_staggered(
            *(solver, denoiser, x_t[chosen], t[chosen], made_of, times), conditions=some, path=path
        )
        idle = int(starts[chosen].min())  # calls with one sample whose estimate is dropped
        assert (net.calls, net.samples) == (steps, int((steps - starts[chosen]).sum()) + idle)
        for row, b in enumerate(chosen.tolist()):
            remaining = times[int(starts[b]) :]
            each = {"scale": conditions["scale"][b : b + 1]}
            alone = ODE_SOLVERS[solver](denoiser, x_t[b : b + 1], remaining, each, path)
            assert torch.equal(ends[row], alone[0])


def test_each_group_changes_its_own_network_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    for group in ("student", "discriminator"):
        method = method_of(config_of(discriminator={"learning_rate": 0.01}))
        networks = {
            "student": method.student.net,
            "discriminator": method.head,
            "teacher": method.context.start.net,
        }
        before = {name: [w.detach().clone() for w in net.parameters()] for name, net in networks.items()}
        monkeypatch.setattr(method, "schedule", lambda step, group=group: (group,))
        train(method, group, 0, Path("states"))
        moved = {
            name
            for name, net in networks.items()
            if any(not torch.equal(w, old) for w, old in zip(net.parameters(), before[name], strict=True))
        }
        assert moved == {group}


def test_without_adversarial_weights_there_is_no_discriminator() -> None:
    assert [*method_of(config_of(phases=[{"modes": [1]}])).groups] == ["student"]
    assert [*method_of(config_of()).groups] == ["student", "discriminator"]


def test_the_teachers_ode_is_solved_once_a_step(monkeypatch: pytest.MonkeyPatch) -> None:
    solved: list[int] = []

    def counting(*values: Any) -> Tensor:
        solved.append(1)
        return solve_staggered(*values)

    monkeypatch.setattr(flash, "solve_staggered", counting)
    method = method_of(config_of())
    updates: list[str] = []
    monkeypatch.setattr(method, "updated", updates.append)
    train(method, "counted", 0, Path("states"))
    assert len(solved) == TRAINING["steps"]
    assert updates == ["student", "discriminator"] * 8


def test_a_wgan_has_clipped_weights() -> None:
    method = method_of(config_of(adversarial="wgan", discriminator={"learning_rate": 0.1}))
    train(method, "wgan", 0, Path("states"))
    largest = max(float(w.detach().abs().max()) for w in method.head.parameters())
    assert largest == pytest.approx(0.01)


def test_a_perceptual_distance_is_that_of_the_decoded_centre(monkeypatch: pytest.MonkeyPatch) -> None:
    """Decoder: 3 channels `(z, 2 z, -z)`; features: the image itself."""
    seen: list[tuple[int, ...]] = []

    def decode(z: Tensor) -> Tensor:
        seen.append(tuple(z.shape))
        return torch.cat([z, 2 * z, z.square()], 1)

    monkeypatch.setattr(flash, "open_maps", lambda context: Identity())
    backbone = SimpleNamespace(decode=decode, decoder=nn.Identity)
    method = method_of(config_of(distance="perceptual", crop=4), backbone=backbone, features=Path("features"))
    f, target = (torch.randn(2, *SHAPE, generator=torch.Generator().manual_seed(i)) for i in (0, 1))
    a, b = (decode(x[:, :, 6:10, 6:10]).numpy() for x in (f, target))
    a, b = (x / np.sqrt((x**2).sum(1, keepdims=True)) for x in (a, b))
    expected = ((a - b) ** 2).sum(1).mean()
    seen.clear()
    assert float(method.distance(f, target)) == pytest.approx(expected, rel=1e-4)
    assert seen == [(2, 1, 4, 4)] * 2
    assert centre(f, None) is f and centre(f, 40).shape == f.shape
    assert torch.equal(centre(f, 5), f[:, :, 5:10, 5:10])


class Identity(nn.Module):
    """A feature network whose only map is the image."""

    channel_weights = None

    def maps(self, images: Tensor) -> list[Tensor]:
        return [images]


def test_the_student_is_sampled_at_the_times_of_its_training() -> None:
    student: Any = toy_model(Toy(MIXTURE))
    free = flash.student_of(config_of(), student)
    assert free.steps is None and free.sampling.solver is Solver.RENOISE
    assert free.sampling.grid(4) == [1, 0.75, 0.5, 0.25, 0] and free.sampling.guidance == STUDENTS.guidance
    assert flash.student_of(config_of(steps=2), student).steps == 2
    shifted = config_of(shift=3.0, grid=8)
    sampled = flash.student_of(shifted, student).sampling.grid(4)
    assert sampled == pytest.approx([1, 0.9, 0.75, 0.5, 0]) and sampled == shifted.times[::2]


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"grid": 6}, "grid = 6: not a multiple of 4 modes"),
        ({"steps": 3}, "steps = 3: the student is trained at 4 times"),
        ({"solver": "renoise"}, "renoise solves no ODE; choose one of ddim"),
        ({"phases": []}, "at least 1 item"),
        ({"phases": [{"modes": [0, 0]}]}, "one above 0"),
        ({"phases": [{"modes": [1, -1]}]}, "have to be at least 0"),
        ({"phases": [{"modes": [1], "share": 0}]}, "greater than 0"),
        ({"phases": [{"modes": [1], "matching": -1}]}, "greater than or equal to 0"),
        ({"guidance": (4.0, 1.0)}, "0 <= low <= high"),
        ({"adversarial": "vanilla"}, "lsgan"),
        ({"shift": 0}, "greater than 0"),
        ({"width": 0}, "greater than 0"),
    ],
)
def test_impossible_settings_are_refused(more: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        config_of(**more)


@pytest.mark.parametrize(
    ("name", "grid", "guidance", "lora", "adversarial", "solver", "shift"),
    [
        ("sd15", 32, (3, 13), (128, 128), [0, 0.1, 0.2, 0.3], Solver.DPM_SOLVER_PP_2M, 1),
        ("sdxl", 32, (3, 13), (64, 64), [0, 0.1, 0.2, 0.3], Solver.DPM_SOLVER_PP_2M, 1),
        ("pixart", 16, (2, 9), (64, 8), [0, 0.05, 0.1, 0.2], Solver.DPM_SOLVER_PP_2M, 1),
        ("sd3", 32, (7, 13), (64, 8), [0, 0.1, 0.3, 0.5], Solver.DDIM, 3),
    ],
)
def test_recipes_have_the_published_values(
    name: str,
    grid: int,
    guidance: tuple[float, float],
    lora: tuple[int, float],
    adversarial: list[float],
    solver: Solver,
    shift: float,
) -> None:
    chain = load_chain(ROOT / f"params/flash_{name}.yaml")
    config = chain.students["few_step"]
    assert chain.teacher.backbone == name.replace("sd15", "sd") and not list(warnings(chain))
    assert (config.grid, config.guidance, config.solver, config.shift) == (grid, guidance, solver, shift)
    assert (config.lora.rank, config.lora.alpha, config.data, config.adversarial) == (
        *lora,
        "encoded",
        "lsgan",
    )
    assert [phase.adversarial for phase in config.phases] == adversarial
    assert [phase.modes for phase in config.phases] == list(MODES)
    assert [phase.matching for phase in config.phases] == [0, 0.3, 0.5, 0.7]
    assert config.training.learning_rate == config.discriminator.learning_rate == 1e-5
