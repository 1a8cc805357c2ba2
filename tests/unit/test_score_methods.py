"""Methods with a fake score, trained by the loop against teachers that are known exactly."""

from copy import deepcopy
from pathlib import Path
from shutil import rmtree
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from fewstep.backbones.model import open_model
from fewstep.core.errors import UserError
from fewstep.core.paths import MODELS, TEACHER, TRIPLETS
from fewstep.diffusion.schedules import Cosine
from fewstep.losses.distribution_matching import distribution_matching, error_scale
from fewstep.methods import dmd2, sid, tdm
from fewstep.students import start
from fewstep.students.context import Context
from fewstep.students.learn import Task, learn, method_module
from fewstep.students.start import start_and_student
from fewstep.training.loop import advance
from fewstep.training.state import State
from tests.miniature import draw_triplets, import_miniature, prepare_images
from tests.mixtures import Mixture, Toy, context_of, learn_mixture, toy_model

SYMMETRIC, SKEWED = Mixture(0.5, -1, 1, 0.4), Mixture(0.3, -0.8, 1, 0.4)
GAUSSIAN = Mixture(0.5, 0, 0, 0.5)
FAKE = {"learning_rate": 0.005, "betas": (0.0, 0.99), "clip": 10.0}
TRAINING = {"steps": 2000, "batch_size": 8, "learning_rate": 0.004, "betas": (0.0, 0.99), "clip": 10.0}
VALUES = {"fake": FAKE, "training": TRAINING, "student_every": 2}
AVERAGED = {"training": TRAINING | {"steps": 1600, "ema": 0.99}}
LARGE_C = {"huber": 1.0}
"""For tdm: with the published c the sign alone of each difference counts, and W1 stays at 0.06."""


@pytest.fixture(autouse=True)
def alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "no")
    monkeypatch.setenv("FEWSTEP_TRACKERS", "")
    monkeypatch.setenv("FEWSTEP_SAVE_EVERY_SECONDS", "3600")


@pytest.mark.parametrize("mixture", [SYMMETRIC, SKEWED], ids=["symmetric", "skewed"])
@pytest.mark.parametrize("method", ["dmd2", "sid", "tdm"])
def test_a_one_step_student_finds_both_modes(method: str, mixture: Mixture) -> None:
    more = {"steps": 1} | (LARGE_C if method == "tdm" else AVERAGED)
    distance, share = learn_mixture(method, mixture, Path("states"), VALUES | more)
    assert distance < 0.05 and abs(share) < 0.05


@pytest.mark.parametrize("method", ["dmd2", "tdm"])
def test_a_two_step_student_has_the_datas_deviation(method: str) -> None:
    more = {"steps": 2} | (LARGE_C if method == "tdm" else {})
    training = {"training": TRAINING | {"steps": 1200, "ema": 0.99}}
    distance, _ = learn_mixture(method, GAUSSIAN, Path("states"), VALUES | more | training)
    assert distance < 0.03


def test_the_gradient_is_the_difference_of_the_scores() -> None:
    """Of N(0, 0.5^2) and of N(0.3, 0.8^2), whose scores at x_tau are known."""
    t = torch.linspace(0.1, 0.9, 32, dtype=torch.float64)
    alpha, sigma = (c[:, None] for c in Cosine().alpha_sigma(t))
    x = torch.from_numpy(np.random.default_rng(0).standard_normal((32, 6))).requires_grad_()
    x_tau = alpha * x.detach() + sigma * torch.from_numpy(np.random.default_rng(1).standard_normal((32, 6)))

    def x_0(mean: float, deviation: float) -> Tensor:
        return mean + alpha * deviation**2 / (alpha**2 * deviation**2 + sigma**2) * (x_tau - alpha * mean)

    def score(mean: float, deviation: float) -> Tensor:
        return -(x_tau - alpha * mean) / (alpha**2 * deviation**2 + sigma**2)

    real, fake = x_0(0.0, 0.5), x_0(0.3, 0.8)
    loss = distribution_matching(x, (fake - real) / error_scale(x, real))
    (gradient,) = torch.autograd.grad(loss, x)
    scale = (x - real).detach().abs().mean(1, keepdim=True)
    expected = sigma**2 / alpha * (score(0.3, 0.8) - score(0.0, 0.5)) / scale / x.numel()
    assert torch.allclose(gradient, expected)


def weights_of(state: State) -> dict[str, dict[str, Tensor]]:
    return {
        label: {name: value.detach().clone() for name, value in group.weights.items()}
        for label, group in state.groups.items()
    }


@pytest.mark.parametrize(("module", "every"), [(dmd2, 3), (sid, 1), (tdm, 2)])
def test_exactly_the_right_networks_move_at_each_step(module: Any, every: int) -> None:
    teacher = toy_model(Toy(SYMMETRIC).requires_grad_(False))
    context = context_of(SYMMETRIC, teacher)
    values = {"method": "any", "from": "teacher", **VALUES, "student_every": every}
    config = module.Config.model_validate(values)
    made = module.student_of(config, toy_model(deepcopy(teacher.net).requires_grad_(True)))
    state = State(module.METHOD(config, context, made), Path("states"))
    frozen = deepcopy(teacher.net.state_dict())
    for step in range(5):
        before = weights_of(state)
        advance(state, "toy", 0, 4)
        moved = {
            label
            for label, weights in weights_of(state).items()
            if any(not torch.equal(value, before[label][name]) for name, value in weights.items())
        }
        assert moved == ({"fake", "student"} if step % every == 0 else {"fake"})
    assert all(torch.equal(value, frozen[name]) for name, value in teacher.net.state_dict().items())


def test_the_loop_reports_each_update_to_the_method(monkeypatch: pytest.MonkeyPatch) -> None:
    teacher = toy_model(Toy(SYMMETRIC).requires_grad_(False))
    config = dmd2.Config.model_validate({"method": "dmd2", "from": "teacher", **VALUES})
    made = dmd2.student_of(config, toy_model(deepcopy(teacher.net).requires_grad_(True)))
    state = State(dmd2.METHOD(config, context_of(SYMMETRIC, teacher), made), Path("states"))
    labels: list[str] = []
    monkeypatch.setattr(state.method, "updated", labels.append)
    for _ in range(3):
        advance(state, "toy", 0, 4)
    assert labels == ["fake", "student", "fake", "fake", "student"]


@pytest.mark.parametrize(
    ("module", "more", "message"),
    [
        (dmd2, {"earliest": 0.9, "latest": 0.5}, "earliest = 0.9: has to be below latest = 0.5"),
        (sid, {"steps": 0}, "steps"),
        (tdm, {"first_time": 0.0}, "first_time"),
        (dmd2, {"diversity": {"steps": 3, "of": 3}}, "steps = 3: has to be below of = 3"),
        (dmd2, {"diversity": {}, "first_time": 0.5}, "needs first_time: 1"),
        (dmd2, {"gan": {"loss": "best"}}, "gan.loss"),
        (dmd2, {"ida": 1.0}, "ida"),
        (sid, {"guidance": (3.0, 1.0)}, "0 <= low <= high"),
    ],
)
def test_impossible_settings_are_refused(module: Any, more: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        module.Config.model_validate({"method": "any", "from": "teacher"} | VALUES | more)


def test_mixing_networks_of_different_shapes_is_refused() -> None:
    teacher = toy_model(Toy(SYMMETRIC).requires_grad_(False))
    config = dmd2.Config.model_validate({"method": "dmd2", "from": "small", **VALUES, "ida": 0.03})
    small = dmd2.student_of(config, toy_model(Toy(SYMMETRIC, width=8)))
    with pytest.raises(UserError, match="ida: the networks of small and of the teacher differ; set ida: 0"):
        dmd2.METHOD(config, context_of(SYMMETRIC, teacher), small)


@pytest.mark.parametrize("method", ["dmd2", "sid", "tdm"])
def test_adapters_on_one_base_learn_what_adapters_on_copies_learn(
    method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    prepare_images(64)
    backbone = import_miniature("sd")
    draw_triplets(backbone)
    training = {"steps": 3, "batch_size": 4, "learning_rate": 0.01}
    values = {"method": method, "from": "teacher", "training": training, "lora": {"rank": 2, "alpha": 2.0}}
    config = method_module(method).Config.model_validate(values | {"fake": {"learning_rate": 0.01}})

    def weights() -> dict[str, Tensor]:
        learn(Task("distill", "student", method, config, [TRIPLETS / "0"], 0))
        state: dict[str, Tensor] = open_model(MODELS / "student", backbone).net.state_dict()
        rmtree(MODELS / "student")
        return state

    shared = weights()
    monkeypatch.setattr(start, "twin", deepcopy)
    copies = weights()
    assert all(torch.equal(value, copies[name]) for name, value in shared.items())


def test_three_networks_share_one_base() -> None:
    prepare_images(64)
    backbone = import_miniature("sd")
    draw_triplets(backbone)
    values = {"method": "dmd2", "from": "teacher", "training": TRAINING, "lora": {"rank": 2, "alpha": 2.0}}
    config = dmd2.Config.model_validate(values | {"fake": FAKE})
    teacher = open_model(TEACHER, backbone)
    begun, student = start_and_student(teacher, "student", backbone, config, 0)
    context = Context("student", 0, begun, student, backbone, [TRIPLETS / "0"], None, None)
    method = dmd2.METHOD(config, context, student)
    base = {weight.data_ptr() for weight in teacher.net.parameters()}
    for net in (student.net, method.fake.net):
        trained = [weight for weight in net.parameters() if weight.data_ptr() not in base]
        assert all(weight.requires_grad for weight in trained) and len(trained) < len(base)
        assert base <= {weight.data_ptr() for weight in net.parameters()}
