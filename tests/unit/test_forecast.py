"""The forecast of `fewstep check`: times scale as the stages do, and what is timed is what the stages run."""

import json
import os
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import yaml
from tools.imports import ROOT
from torch.utils.flop_counter import FlopCounterMode

from fewstep.backbones.registry import open_backbone
from fewstep.chain import Chain, load_chain
from fewstep.checks import forecast as forecasting
from fewstep.checks import measuring
from fewstep.checks.forecast import AROUND, forecast, in_words, seconds_of
from fewstep.checks.measuring import Measuring, distinct
from fewstep.checks.plan import plan
from fewstep.checks.rates import Rates
from fewstep.checks.rehearsal import rehearsal, training_step
from fewstep.checks.stopwatch import ROOM, Stopwatch
from fewstep.checks.teacher import design
from fewstep.core.paths import TEACHER, TRIPLETS
from fewstep.core.units import duration
from fewstep.students.context import Context
from fewstep.students.learn import method_module
from fewstep.students.start import start_and_student
from fewstep.training.loop import advance
from fewstep.training.state import State
from tests.miniature import draw_triplets, import_miniature, prepare_images

MINIATURE = ROOT / "tests/integration/miniature.yaml"


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "no")
    monkeypatch.setattr(measuring, "processes", lambda: 1)
    monkeypatch.setattr(forecasting, "processes", lambda: 1)


def rates_of(chain: Chain, **changes: Any) -> Rates:
    """Whole numbers of seconds, and nothing for what is small."""
    trainings = ["train_judge", "train_teacher, autoencoder", "train_teacher, denoiser", *chain.models()]
    known = Rates(
        start=1.0,
        open=1.0,
        prepare=0.0,
        read=0.0,
        step=dict.fromkeys(trainings, 2.0),
        save=dict.fromkeys(trainings, 0.0),
        teacher=3.0,
        student=dict.fromkeys(chain.models(), 0.0),
        prompt=0.0,
        encode=0.0,
        decode=0.0,
        features=0.0,
    )
    return replace(known, **changes)


def times(chain: Chain, rates: Rates) -> dict[str, float]:
    return {stage.name: seconds_of(chain, stage, rates) or 0.0 for stage in plan(chain)}


def foreign(family: str, **sampling: Any) -> Chain:
    """The miniature chain of a family, whose pipeline is in the folder `stock`."""
    import_miniature(family)
    values = yaml.safe_load(MINIATURE.read_text())
    values["teacher"] = {"backbone": family, "train": [], "load": ["stock"], "adopt": []}
    values["sampling"] |= {"solver": "ddim", **sampling}
    for section in ("compress", "decoder", "export"):
        values[section] = {}
    Path("params.yaml").write_text(yaml.safe_dump(values))
    return load_chain()


@pytest.mark.parametrize("family", ["sd", "sdxl", "sd3", "pixart", "sana", "pixel"])
def test_a_foreign_teachers_solver_step_is_timed(family: str) -> None:
    """Some families take their times from the scheduler of the pipeline."""
    chain = foreign(family)
    here = rehearsal(chain, design(chain), Path(), 2**40)
    assert here.backbone is not None
    drawn = here.drawing("teacher")(2)
    assert isinstance(drawn, torch.Tensor) and drawn.shape == (2, *here.backbone.latent_shape)


def test_steps_outside_of_the_guidance_interval_count_once() -> None:
    """Of rectified flow the noise level is t / (1 - t)."""
    chain = foreign("sd3", guidance=3.0, guidance_interval=[0.5, 2.0])
    sampling = chain.sampling.model_copy(update={"steps": 12, "time_power": 1.0})
    here = rehearsal(chain, design(chain), Path(), 2**40)
    share = Measuring(chain, design(chain), Stopwatch(), here).share
    levels = [t / (1 - t) for t in open_backbone(TEACHER).times(12)[1:-1]]  # the first is infinite
    inside = sum(0.5 <= level <= 2 for level in levels)
    assert 0 < inside < 11
    assert share("teacher", sampling) == pytest.approx((12 + inside) / 24)
    assert share("teacher", sampling.model_copy(update={"guidance_interval": None})) == 1
    assert share("teacher", sampling.model_copy(update={"guidance": 1.0})) == 1
    limited, whole = (
        times(chain, rates)["generate_triplets@0"] - 1.0 - AROUND
        for rates in (rates_of(chain, share=lambda model, sampling: 0.75), rates_of(chain))
    )
    assert limited == pytest.approx(0.75 * whole)


def test_times_are_numbers_times_rates(monkeypatch: pytest.MonkeyPatch) -> None:
    chain = load_chain(ROOT / "params.yaml")
    rates, begun = rates_of(chain), 1.0 + AROUND
    seconds = times(chain, rates)
    for name, config in ((name, model.config) for name, model in chain.models().items()):
        assert seconds[name] == pytest.approx(begun + 2.0 * config.training.steps)
    triplets = chain.triplets
    assert seconds["generate_triplets@0"] == pytest.approx(begun + 3.0 * triplets.steps * triplets.count)
    assert seconds["prepare_data"] == begun
    for workers in (1, 3):
        monkeypatch.setenv("FEWSTEP_WORKERS", str(workers))
        reading = times(chain, replace(rates, prepare=0.5))
        assert reading["prepare_data"] == pytest.approx(begun + 0.5 * (chain.data.count or 0) / workers)
    # An image costs a decoding and two looks, whatever the model.
    drawn = replace(rates, decode=1.0, features=1.0)
    more = times(chain, drawn)["evaluate@one_step"] - seconds["evaluate@one_step"]
    images = forecasting.drawn(chain.evaluation_set)
    assert more == pytest.approx(images * (1 + forecasting.FEATURE_PASSES) + forecasting.SPEED[1])


def test_a_stages_start_is_measured_where_this_process_began(monkeypatch: pytest.MonkeyPatch) -> None:
    """Libraries and `quiet` have set variables since, with which it would not be preloaded."""
    monkeypatch.setattr(measuring, "BEGAN_IN", {**os.environ, "BEGAN": "1"})
    monkeypatch.setenv("SINCE", "1")
    measured: Any = SimpleNamespace(watch=SimpleNamespace(once=lambda run: run()))
    Measuring.started(measured, "import json, os\njson.dump(dict(os.environ), open('seen.json', 'w'))")
    seen = json.loads(Path("seen.json").read_text())
    assert seen["BEGAN"] == "1" and "SINCE" not in seen


def test_processes_share_what_they_can(monkeypatch: pytest.MonkeyPatch) -> None:
    chain = load_chain(ROOT / "params.yaml")
    alone = times(chain, rates_of(chain))
    monkeypatch.setattr(forecasting, "processes", lambda: 4)
    shared = times(chain, rates_of(chain))
    begun = 1.0 + AROUND
    assert shared["generate_triplets@0"] - begun == pytest.approx((alone["generate_triplets@0"] - begun) / 4)
    assert shared["evaluate@teacher"] == alone["evaluate@teacher"]


def test_what_is_unknown_is_named() -> None:
    chain = load_chain(ROOT / "params.yaml")
    rates = rates_of(chain, teacher=None, step=dict.fromkeys(rates_of(chain).step, None))
    seconds = {stage.name: seconds_of(chain, stage, rates) for stage in plan(chain)}
    assert seconds["reflow"] is None and seconds["generate_triplets@0"] is None
    assert "unknown until the teacher is there: " in in_words(seconds) and "reflow" in in_words(seconds)


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(12.4, "12 s"), (840.0, "14 min"), (3 * 3600.0, "3.0 h"), (12 * 86400.0, "12 days")],
)
def test_durations_are_a_persons(seconds: float, words: str) -> None:
    assert duration(seconds) == words
    assert in_words({"one": seconds}) == f"about {words} on this machine for the whole chain"


class Machine:
    """A machine on which a step of n samples takes `1 + n / 100` seconds and so many bytes each."""

    def __init__(self, memory: int, bytes_each: int) -> None:
        self.memory, self.bytes_each, self.now, self.ran = memory, bytes_each, 0.0, [0]

    def run(self, rows: int) -> None:
        torch.empty(rows * self.bytes_each, dtype=torch.uint8)
        self.ran.append(rows)
        self.now += 1 + rows / 100

    def watch(self, budget: float = 1e6) -> Stopwatch:
        return Stopwatch(budget, lambda: self.now, lambda: self.memory)


def test_a_step_is_measured_at_its_own_size_where_that_fits() -> None:
    machine = Machine(memory=10**9, bytes_each=1000)
    assert machine.watch().batch(machine.run, 100) == pytest.approx(2.0)
    assert max(machine.ran) == 100


def test_no_step_exceeds_the_free_memory() -> None:
    machine = Machine(memory=100_000, bytes_each=1000)
    assert machine.watch().batch(machine.run, 1000) == pytest.approx(11.0)
    assert max(machine.ran) * machine.bytes_each <= ROOM * machine.memory
    known = Machine(memory=10**9, bytes_each=1000)
    assert known.watch().batch(known.run, 1000, fitting=50) == pytest.approx(11.0)
    assert max(known.ran) == 50


def test_no_step_takes_more_than_its_share_of_the_budget() -> None:
    machine = Machine(memory=10**9, bytes_each=1000)
    watch = machine.watch(budget=80.0)
    watch.batch(machine.run, 1000)
    assert 1 + max(machine.ran) / 100 <= watch.longest and machine.now < watch.budget / 4
    # Where the first samples take that long already, they are all that is run.
    slow = Machine(memory=10**9, bytes_each=1000)
    assert slow.watch(budget=1.0).batch(slow.run, 1000) == pytest.approx(510.0)
    assert slow.ran == [0, 2]


@pytest.mark.parametrize("name", ["small", "reflow", "halve-4", "one_step"])
def test_what_is_timed_is_the_trainings_step(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    # The miniature's text encoder reads fewer tokens than any published one.
    monkeypatch.setattr("fewstep.backbones.sd.CLIP_LENGTH", 12)
    backbone = import_miniature("sd")
    prepare_images()
    draw_triplets(backbone)
    params = yaml.safe_load((ROOT / "params.yaml").read_text())
    params["teacher"] = {"backbone": "sd", "train": [], "load": ["stock"], "adopt": []}
    params["data"]["resolution"] = 64
    training = {"steps": 4, "batch_size": 4, "learning_rate": 1e-4}
    params["compress"] = {"small": {"from": "teacher", "unet": "small", "training": training}}
    Path("params.yaml").write_text(yaml.safe_dump(params))
    chain = load_chain()
    config, rows = chain.models()[name].config, 4
    here = rehearsal(chain, design(chain), Path("rehearsed"), 10**9)

    # As `learn` builds it, on the artifacts.
    start, student = start_and_student(here.model(config.from_), name, backbone, config, chain.seed)
    context = Context(name, chain.seed, start, student, backbone, [TRIPLETS / "0"], None, None)
    module = method_module(chain.models()[name].method)
    method = module.METHOD(config, context, module.student_of(config, context.student))
    state = State(method, Path("work"))
    with FlopCounterMode(display=False) as counter:
        advance(state, name, chain.seed, rows)
    run = training_step(here.student_training(name), config.training, Path("rehearsed"))
    with FlopCounterMode(display=False) as again:
        run(rows)
    assert again.get_total_flops() == counter.get_total_flops() > 0


def test_a_training_begins_in_float32_after_another_has_rounded_the_teacher(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """`flash` evaluates the teacher before its training begins."""
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    params = yaml.safe_load(MINIATURE.read_text())
    training = {"steps": 4, "batch_size": 4, "learning_rate": 1e-4}
    params["students"] |= {
        name: {"method": name, "from": "teacher", "training": training} for name in ("lcm", "flash")
    }
    Path("params.yaml").write_text(yaml.safe_dump(params))
    chain = load_chain()
    here = rehearsal(chain, design(chain), Path("rehearsed"), 10**9)
    for name in ("lcm", "flash"):
        training_step(here.student_training(name), chain.students[name].training, Path(name))(4)
        assert {weight.dtype for weight in here.teacher.net.parameters()} > {torch.float32}, "it is rounded"


def test_trainings_of_one_design_are_measured_once() -> None:
    chain = load_chain(ROOT / "params.yaml")
    assert distinct(chain.students["one_step"]) == distinct(chain.students["no_halving"])
    assert distinct(chain.halve["4"]) != distinct(chain.halve["2"])


def test_every_stage_of_the_plan_has_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """The real networks of the miniature chain; its perceptual loss opens the classifier from the disk."""
    monkeypatch.setattr(measuring, "START", "pass")
    monkeypatch.setattr(measuring, "OPEN", "pass")
    monkeypatch.setattr(Measuring, "best", 1e12)
    chain = load_chain(MINIATURE)
    seconds = forecast(chain, design(chain), Stopwatch(2.0))
    assert [*seconds] == [stage.name for stage in plan(chain)]
    assert all(value is not None and value > 0 for value in seconds.values())
    assert {"train_judge", "train_teacher, denoiser", "export@one_step", "report"} < seconds.keys()
