"""Evaluation during training: the curve, the best weights, the warning, and all of it after a kill."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fewstep.config.sampling import SamplingConfig
from fewstep.config.training import StudentTrainingConfig
from fewstep.core.keyed import Key
from fewstep.data.triplets import TripletBatch
from fewstep.diffusion.denoiser import Conditions, Denoiser, Prediction
from fewstep.diffusion.sampling import STUDENTS
from fewstep.diffusion.schedules import RectifiedFlow
from fewstep.students.watch import IMAGES, PROMPTS, SAMPLES, Watch
from fewstep.training.evaluations import beyond, read_curve
from fewstep.training.loop import train
from fewstep.training.method import Group, Method, Rows

RATE, GOAL = 0.1, 1.04
"""AdamW's steps on a constant gradient; the measure is lowest where the weight is nearest to the goal."""


@pytest.fixture(autouse=True)
def alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "no")
    monkeypatch.setenv("FEWSTEP_TRACKERS", "")
    monkeypatch.setenv("FEWSTEP_SAVE_EVERY_SECONDS", "3600")


class Climb(Method):
    """A weight that grows by RATE a step from 0, past its goal; stops at a step, or while it is measured."""

    def __init__(
        self, keep: str, stop: int | None = None, while_measured: int | None = None, **more: Any
    ) -> None:
        self.stop, self.while_measured, self.step = stop, while_measured, 0
        self.net = nn.Linear(1, 1, bias=False)
        self.limits = {"brightness": 0.5}
        nn.init.zeros_(self.net.weight)
        values = {"steps": 20, "batch_size": 1, "learning_rate": RATE, "decay": "constant", "clip": 1e9}
        self.training = StudentTrainingConfig.model_validate(
            values | {"evaluate_every": 3, "keep": keep} | more
        )
        self.groups = {"climb": Group({"net": self.net}, self.training)}

    @property
    def value(self) -> float:
        return float(self.net.weight.detach())

    def batch(self, rows: Rows) -> Tensor:
        if rows.step == self.stop:
            raise KeyboardInterrupt
        return torch.ones(1, 1)

    def losses(self, group: str, batch: Tensor, step: int) -> dict[str, Tensor]:
        self.step = step + 1
        return {"height": -self.net(batch).mean()}

    def evaluate(self) -> dict[str, float]:
        if self.step == self.while_measured:
            raise KeyboardInterrupt
        assert not self.net.training
        return {"feature_distance": abs(self.value - GOAL), "brightness": self.value - 0.2}


@pytest.mark.parametrize("keep", ["last", "best"])
def test_the_kept_weights_are_the_last_or_the_best_measured(keep: str, tmp_path: Path) -> None:
    climb = Climb(keep)
    train(climb, "climb", 0, tmp_path)
    assert [record["step"] for record in read_curve(tmp_path / "climb")] == [3, 6, 9, 12, 15, 18, 20]
    # At step n the weight is 0.1 n; of the measured steps, 9 is nearest to the goal.
    assert climb.value == pytest.approx(0.9 if keep == "best" else 2.0, rel=1e-3)


@pytest.mark.parametrize("ended", [{"stop": 7}, {"stop": 10}, {"while_measured": 9}, {"while_measured": 20}])
def test_the_best_is_the_same_after_a_kill(ended: dict[str, int], tmp_path: Path) -> None:
    whole, torn, resumed = Climb("best"), Climb("best", **ended), Climb("best")
    train(whole, "climb", 0, tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        train(torn, "climb", 0, tmp_path / "torn")
    train(resumed, "climb", 0, tmp_path / "torn")
    assert torch.equal(whole.net.weight, resumed.net.weight)
    curves = [(tmp_path / name / "climb/evaluations.json").read_bytes() for name in ("whole", "torn")]
    assert curves[0] == curves[1]


def test_measured_and_kept_is_the_average_where_there_is_one(tmp_path: Path) -> None:
    """The weights go on as if nothing had been measured."""
    plain, measured = Climb("last", evaluate_every=None, ema=0.5), Climb("best", ema=0.5)
    train(plain, "climb", 0, tmp_path / "plain")
    train(measured, "climb", 0, tmp_path / "measured")
    curve = read_curve(tmp_path / "measured/climb")
    best = min(curve, key=lambda record: record["feature_distance"])
    assert measured.value == pytest.approx(best["brightness"] + 0.2, abs=1e-5)
    last = curve[-1]["brightness"] + 0.2
    assert last == pytest.approx(plain.value, abs=1e-5) and last < 2 - 0.05, "the average lags behind"


def test_a_drift_is_named_once_with_the_step_since_which_it_lasts(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train(Climb("last"), "climb", 0, tmp_path)
    output = capsys.readouterr().out
    assert output.count("warning: climb: brightness drifts") == 1
    assert "brightness drifts against the teacher's images: +100 %, beyond 50 % since step 9" in output


def test_a_single_outlier_is_no_drift() -> None:
    curve = [{"step": step, "detail": value} for step, value in ((1, 0.0), (2, -0.4), (3, 0.0), (4, 0.3))]
    assert beyond(curve, "detail", 0.15) is None
    assert beyond([*curve, {"step": 5, "detail": -0.2}], "detail", 0.15) == 4
    assert beyond(curve, "unknown", 0.15) is None


def test_keeping_the_best_needs_measurements() -> None:
    with pytest.raises(ValueError, match="set evaluate_every"):
        Climb("best", evaluate_every=None)


def images() -> Tensor:
    """Of the teacher, in [-1, 1]."""
    return 2 * torch.rand(IMAGES, 3, 16, 16, generator=torch.Generator().manual_seed(0)) - 1


def watch_and_student(change: Any) -> tuple[Watch, Any]:
    """A student that makes `change(x_0)` of the triplet's noise, and one fixed image of any other noise."""
    x_0, eps = images(), torch.randn(IMAGES, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    flow = RectifiedFlow()

    def network(x: Tensor, time: Tensor, conditions: Conditions) -> Tensor:
        known = len(x) == IMAGES
        return x - (change(x_0) if known else change(x_0[:1]).expand_as(x))

    backbone: Any = SimpleNamespace(decode=lambda z, decoder=None: z, latent_shape=(3, 16, 16), times=None)
    context: Any = SimpleNamespace(
        backbone=backbone,
        features=None,
        sampling=SamplingConfig(),
        key=lambda use: Key(0, use),
        triplet_batch=lambda positions: TripletBatch(x_0, eps, {}),
    )
    denoiser = Denoiser(network, flow, Prediction.FLOW, flow)
    model = SimpleNamespace(
        denoiser=denoiser, sampling=STUDENTS, takes_guidance=False, steps=1, net=nn.Identity(), parts={}
    )
    return Watch(context), model


def test_a_student_that_draws_the_teachers_images_measures_zero() -> None:
    watch, student = watch_and_student(lambda x: x)
    measured = watch.measure(student, 1)
    assert {name: pytest.approx(0, abs=1e-5) for name in measured} == measured
    assert measured["diversity"] == pytest.approx(0, abs=1e-5), "one fixed image per prompt"
    assert PROMPTS * SAMPLES != IMAGES


def test_a_darker_student_is_measured_as_one() -> None:
    """`(x + 1) / 2 * 0.8`: a fifth less of each tone."""
    watch, student = watch_and_student(lambda x: 0.8 * (x + 1) - 1)
    measured = watch.measure(student, 1)
    for tone in ("brightness", "saturation", "contrast", "detail"):
        assert measured[tone] == pytest.approx(-0.2, abs=1e-4), tone
    expected = (0.2 * (images() + 1)).square().mean().sqrt().item()
    assert measured["agreement"] == pytest.approx(expected, rel=1e-4)
    assert json.dumps(measured)
