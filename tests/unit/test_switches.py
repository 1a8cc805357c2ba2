"""Switches of the machine: they change time and memory, and no result beyond rounding."""

from functools import partial
from itertools import chain
from pathlib import Path

import pytest
import torch
from accelerate.tracking import TensorBoardTracker
from diffusers import ModelMixin
from torch import Tensor, nn

from fewstep.backbones.model import open_model
from fewstep.backbones.protocol import Backbone
from fewstep.backbones.registry import open_backbone
from fewstep.config.training import StudentTrainingConfig
from fewstep.core.errors import UserError
from fewstep.core.hardware import checkpointed, mixed_precision
from fewstep.core.paths import MODELS, TEACHER, TRIPLETS
from fewstep.methods import reflow
from fewstep.students.learn import Task, learn
from fewstep.training.loop import advance, train
from fewstep.training.method import Group, Method, Rows
from fewstep.training.state import State
from tests.miniature import draw_triplets, import_miniature, prepare_images
from tests.pipelines import MAKERS

TRAINING = StudentTrainingConfig(steps=3, batch_size=6, learning_rate=1e-3, ema=0.9)


def enter(folder: Path, patch: pytest.MonkeyPatch) -> None:
    """Work there, in float32."""
    patch.chdir(folder)
    patch.setenv("ACCELERATE_MIXED_PRECISION", "no")
    patch.setenv("FEWSTEP_TRACKERS", "")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project with a teacher and triplets."""
    folder = tmp_path_factory.mktemp("project")
    with pytest.MonkeyPatch.context() as patch:
        enter(folder, patch)
        backbone = import_miniature("sd")
        prepare_images()
        draw_triplets(backbone)
    return folder


@pytest.fixture(scope="module")
def plain(place: Path) -> dict[str, Tensor]:
    """The student that is learned without switches."""
    with pytest.MonkeyPatch.context() as patch:
        enter(place, patch)
        return trained(open_backbone(TEACHER))


@pytest.fixture
def backbone(place: Path, monkeypatch: pytest.MonkeyPatch) -> Backbone:
    enter(place, monkeypatch)
    return open_backbone(TEACHER)


def trained(backbone: Backbone) -> dict[str, Tensor]:
    config = reflow.Config(training=TRAINING, **{"from": "teacher"})
    learn(Task("reflow", "reflow", "reflow", config, [TRIPLETS / "0"], 0))
    return dict(open_model(MODELS / "reflow", backbone).net.state_dict())


def distance(one: dict[str, Tensor], two: dict[str, Tensor]) -> float:
    assert one.keys() == two.keys()
    return sum(float((value - two[name]).square().sum()) for name, value in one.items()) ** 0.5


@pytest.mark.parametrize(
    ("switch", "value"),
    [
        ("MICRO_BATCH", "2"),
        ("MICRO_BATCH", "4"),
        ("CHECKPOINT_ACTIVATIONS", "1"),
        ("CHANNELS_LAST", "1"),
        ("COMPILE", "eager"),
        ("EMA_ON_HOST", "1"),
    ],
)
def test_the_same_network_is_learned(
    switch: str,
    value: str,
    plain: dict[str, Tensor],
    backbone: Backbone,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv(f"FEWSTEP_{switch}", value)
    weights = trained(backbone)
    moved = distance(plain, dict(backbone.net.state_dict()))
    assert distance(plain, weights) <= (0.0 if switch == "EMA_ON_HOST" else 0.01 * moved)


@pytest.mark.parametrize("family", MAKERS)
def test_networks_without_gradient_checkpointing_are_left_as_they_are(
    family: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Sana's autoencoder has none, and diffusers' function raises ValueError."""
    monkeypatch.setenv("FEWSTEP_CHECKPOINT_ACTIVATIONS", "1")
    pipeline = MAKERS[family]()
    networks = [part for part in pipeline.components.values() if isinstance(part, ModelMixin)]
    recomputed = [checkpointed(net).is_gradient_checkpointing for net in networks]
    assert recomputed == [type(net).__name__ != "AutoencoderDC" for net in networks]
    assert any(recomputed)


def test_micro_batches_see_every_row_once_and_never_more_than_they_may(
    backbone: Backbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[list[int]] = []
    batch = reflow.Reflow.batch

    def counted(method: reflow.Reflow, rows: Rows) -> reflow.Batch:
        seen.append([*rows.positions])
        return batch(method, rows)

    monkeypatch.setattr(reflow.Reflow, "batch", counted)
    monkeypatch.setenv("FEWSTEP_MICRO_BATCH", "4")
    trained(backbone)
    assert [len(rows) for rows in seen] == [4, 2] * TRAINING.steps
    assert [*chain.from_iterable(seen)] == [*range(TRAINING.steps * TRAINING.batch_size)]


class Root(Method):
    """The square root of a weight, `start` at first, and its half; stops itself at a step, once."""

    def __init__(self, start: float, stop: int | None = None) -> None:
        self.net, self.stop = nn.Linear(1, 1, bias=False), stop
        nn.init.constant_(self.net.weight, start)
        self.training = StudentTrainingConfig(steps=20, batch_size=2, learning_rate=0.1, ema=0.9)
        self.groups = {"root": Group({"net": self.net}, self.training)}

    def batch(self, rows: Rows) -> Tensor:
        if rows.step == self.stop:
            raise KeyboardInterrupt
        return torch.ones(len(rows.positions), 1)

    def losses(self, group: str, batch: Tensor, step: int) -> dict[str, Tensor]:
        return {"root": self.net.weight.sqrt().mean(), "half": self.net(batch).float().mean() / 2}


@pytest.fixture
def half(monkeypatch: pytest.MonkeyPatch) -> None:
    """Float16, and gradients so much enlarged that they overflow in the first two steps."""
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "fp16")
    monkeypatch.setenv("FEWSTEP_TRACKERS", "")
    monkeypatch.setenv("FEWSTEP_SAVE_EVERY_SECONDS", "0")
    monkeypatch.setattr(torch.amp, "GradScaler", partial(torch.amp.GradScaler, init_scale=2.0**18))


def test_an_overflow_changes_no_weight_and_ends_no_training(half: None, tmp_path: Path) -> None:
    root = Root(4.0)
    state = State(root, tmp_path)
    scales, weights, averaged = [], [], []
    for _ in range(4):
        advance(state, "root", 0, 2)
        averaged.append(state.groups["root"].averages["ema"].updates)
        scales.append(state.groups["root"].scaler.get_scale())
        weights.append(root.net.weight.item())
    assert averaged == [0, 0, 1, 2]
    assert scales == [2.0**17, 2.0**16, 2.0**16, 2.0**16]
    assert weights[:2] == [4.0, 4.0] and weights[2] > weights[3] and weights[2] < 4.0


def test_a_resumed_training_goes_on_at_its_scale(half: None, tmp_path: Path) -> None:
    whole, torn, resumed = Root(4.0), Root(4.0, stop=5), Root(4.0)
    train(whole, "root", 0, tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        train(torn, "root", 0, tmp_path / "torn")
    train(resumed, "root", 0, tmp_path / "torn")
    assert torch.equal(whole.net.weight, resumed.net.weight)


def test_a_gradient_that_no_scale_mends_ends_it(half: None, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="root gradient norm became inf at step 18"):
        train(Root(0.0), "root", 0, tmp_path)


def test_a_network_is_learned_in_half_precision(
    plain: dict[str, Tensor], backbone: Backbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "fp16")
    weights = trained(backbone)
    assert 0 < distance(plain, weights) < 0.1 * distance(plain, dict(backbone.net.state_dict()))


def test_a_tracker_that_fails_is_left_off_and_ends_no_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "no")
    monkeypatch.setenv("FEWSTEP_TRACKERS", "tensorboard")

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(TensorBoardTracker, "log", full)
    root = Root(4.0)
    train(root, "root", 0, tmp_path / "states")
    assert root.net.weight.item() < 4.0
    assert capsys.readouterr().err.count("trackers failed and are left off") == 1


def test_a_methods_own_error_in_its_preview_ends_the_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "no")
    monkeypatch.setenv("FEWSTEP_TRACKERS", "tensorboard")
    root = Root(4.0)

    def broken() -> Tensor:
        raise IndexError("no such row")

    monkeypatch.setattr(root, "preview", broken)
    with pytest.raises(IndexError, match="no such row"):
        train(root, "root", 0, tmp_path / "states")


def test_a_precision_that_is_not_known_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "fp8")
    with pytest.raises(UserError, match="ACCELERATE_MIXED_PRECISION=fp8: expected one of no, bf16, fp16"):
        mixed_precision()
