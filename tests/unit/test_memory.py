"""The estimated memory of a training, against that of real tensors."""

import os
import subprocess
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import diffusers as d
import pytest
import torch
import yaml
from tools.imports import ROOT
from torch.utils.flop_counter import FlopCounterMode

from fewstep.backbones.sd_new import new_net
from fewstep.chain import load_chain
from fewstep.checks import tracing
from fewstep.checks.live_bytes import LiveBytes
from fewstep.checks.memory import Design, Setup, advice, need, operations, setup_of, speed, student_setup
from fewstep.checks.plan import trainings
from fewstep.checks.teacher import design
from fewstep.checks.tracing import Kind, optimizer_bytes, optimizers_for, passes, trace, update
from fewstep.config.training import TrainingConfig
from fewstep.core.errors import UserError
from fewstep.core.hardware import attention, autocast
from fewstep.diffusion.denoiser import Prediction
from fewstep.diffusion.schedules import RectifiedFlow
from fewstep.methods import lcm, sid
from fewstep.training.half import halve_frozen
from fewstep.training.lora import LoraSettings, attach
from fewstep.training.optimization import optimizers_of, trained_weights
from tests.pipelines import backbone_of, make, pixart_transformer, unet

ROWS = 4
ADAMW = Setup(rows=ROWS, optimizer="adamw", ema=False, start=True)
SD15 = Design("sd", lambda: d.UNet2DConditionModel(cross_attention_dim=768, sample_size=64))


@pytest.fixture(autouse=True)
def float32(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "no")
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    for name in ("MICRO_BATCH", "CHECKPOINT_ACTIVATIONS"):
        monkeypatch.delenv(f"FEWSTEP_{name}", raising=False)
    trace.cache_clear()


@pytest.fixture
def default() -> Design:
    designed = design(load_chain(ROOT / "params.yaml"))
    assert designed is not None
    return designed


def really_live(designed: Design, kind: Kind, rows: int, monkeypatch: pytest.MonkeyPatch) -> int:
    """Most bytes of real tensors that are live at once in a step, beside weights and optimizer state."""
    monkeypatch.setattr(tracing, "ROWS", rows)
    net = designed.make()
    if kind.lora is not None:
        attach(net, kind.lora, designed.kind.lora_targets, 0)
    trained = [weight for weight in net.parameters() if weight.requires_grad]
    optimizers = optimizers_for(net, kind.optimizer)
    update(trained, optimizers)
    traced = passes(designed, kind, net)
    assert traced is not None
    gradients = sum(4 * weight.numel() for weight in trained)
    for weight in trained:
        weight.grad = None
    with LiveBytes(1) as live:
        update(trained, optimizers)
    return max(max(map(sum, traced.history)) + kind.accumulates * gradients, max(map(sum, live.history)))


LOW = LoraSettings(rank=8, alpha=8.0)


@pytest.mark.parametrize(
    ("kind", "tolerance"),
    [
        (Kind("adamw"), 0.001),
        (Kind("muon"), 0.001),
        (Kind("adamw", accumulates=True), 0.001),
        (Kind("adamw", lora=LOW), 0.001),
        (Kind("adamw", checkpointed=True), 0.05),
        (Kind("adamw", lora=LOW, checkpointed=True), 0.05),
    ],
)
def test_live_bytes_are_a_real_steps(
    kind: Kind, tolerance: float, default: Design, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = trace(default, kind).peak(ROWS)
    assert expected == pytest.approx(really_live(default, kind, ROWS, monkeypatch), rel=tolerance)


def test_a_transformers_live_bytes_are_a_real_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    make_net = partial(pixart_transformer, use_additional_conditions=False)
    designed = Design("pixart", make_net, pipeline="PixArtSigmaPipeline")
    expected = trace(designed, Kind("adamw")).peak(ROWS)
    assert expected == pytest.approx(really_live(designed, Kind("adamw"), ROWS, monkeypatch), rel=0.001)


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="needs Linux's peak of memory")
def test_a_training_takes_the_estimated_memory() -> None:
    """A real step of the default teacher, with an allocator that keeps no freed blocks."""
    place = os.environ | {"MALLOC_MMAP_THRESHOLD_": "65536"}
    command = [sys.executable, "-m", "tests.peak"]
    done = subprocess.run(command, env=place, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    expected, measured = map(float, done.stdout.split())
    assert measured == pytest.approx(expected, rel=0.15)


def test_temporary_buffers_of_the_backward_pass_are_counted() -> None:
    """A chain of squares: in its backward pass gradients are live beside what was saved."""

    class Squares(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            for _ in range(4):
                x = x.square()
            return x

    x = torch.ones(7, 100, requires_grad=True)
    with LiveBytes(7) as live:
        loss = Squares()(x).sum()
        before = max(batch for _, batch in live.history)
        loss.backward()
    assert max(batch for _, batch in live.history) > before == 4 * 4 * 700


def test_operations_are_a_real_networks_in_both_directions(default: Design) -> None:
    net: Any = default.make()
    backbone = default.kind({}, RectifiedFlow(), Prediction.FLOW)
    conditions = backbone.example_conditions(net, ROWS, default.length)
    x = torch.zeros(ROWS, net.config.in_channels, net.config.sample_size, net.config.sample_size)
    with FlopCounterMode(display=False) as counter:
        with autocast():
            loss = backbone.network(net)(x, torch.ones(ROWS), conditions).sum()
        with attention():
            loss.backward()
    counted = counter.get_total_flops()
    assert operations(default, ADAMW, ROWS) == pytest.approx(counted, rel=0.001)
    recomputed = operations(default, replace(ADAMW, checkpointed=True), ROWS)
    assert recomputed is not None and 1.15 * counted < recomputed < 1.35 * counted
    low = operations(default, replace(ADAMW, lora=LoraSettings(rank=1, alpha=1.0)), ROWS)
    assert low is not None and 0.6 * counted < low < 0.8 * counted
    assert speed(0.0) > 1e8


def test_bfloat16_keeps_less(default: Design, monkeypatch: pytest.MonkeyPatch) -> None:
    exact = trace(default, Kind("adamw")).peak(128)
    trace.cache_clear()
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    half = trace(default, Kind("adamw")).peak(128)
    assert exact and half and 0.4 < half / exact < 0.9


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_optimizer_state_is_that_of_real_tensors(optimizer: Any, default: Design) -> None:
    net = default.make()
    training = TrainingConfig(steps=1, batch_size=1, learning_rate=1e-3, optimizer=optimizer)
    optimizers = optimizers_of(trained_weights({"net": net}), training)
    update([*net.parameters()], optimizers)
    size = optimizer_bytes(optimizers)
    assert trace(default, Kind(optimizer)).optimizer == size
    weights = sum(p.numel() * p.element_size() for p in net.parameters())
    whole = need(default, Setup(ROWS, optimizer, ema=True, start=True))
    assert whole.state == 3 * weights + size
    assert trace(default, Kind("adamw_8bit")).optimizer == weights / 2


def test_stable_diffusion_as_published() -> None:
    estimate = need(SD15, ADAMW)
    assert estimate.parameters == 859_520_964
    assert estimate.step is not None and 1e10 < estimate.step < 1e12
    assert estimate.state == 4 * 4 * 859_520_964


def test_fakes_averages_and_a_second_frozen_network_are_counted() -> None:
    designed = Design("sd", partial(unet, 16))
    estimate = need(designed, ADAMW)
    weights = 4 * estimate.parameters
    # Weights and two moments.
    assert need(designed, replace(ADAMW, further=("adamw",))).state == estimate.state + 3 * weights
    assert need(designed, replace(ADAMW, averages=1, teacher=True)).state == estimate.state + 2 * weights
    three = need(designed, replace(ADAMW, gradient_passes=3)).step
    as_rows = need(designed, replace(ADAMW, rows=3 * ROWS)).step
    assert estimate.step is not None and three is not None and as_rows is not None
    assert 1.5 * estimate.step < three <= as_rows
    low = replace(ADAMW, lora=LoraSettings(rank=1, alpha=1.0))
    more = need(designed, replace(low, further=("adamw",))).state - need(designed, low).state
    assert 0 < more < weights, "of a fake on the same base, its adapter alone"


def test_a_methods_networks_are_part_of_its_setup() -> None:
    training = {"steps": 1, "batch_size": 1, "learning_rate": 1e-3}
    fake = {"learning_rate": 1e-3, "optimizer": "muon"}
    values = {"method": "any", "from": "reflow", "training": training}
    guided = student_setup(sid.Config.model_validate(values | {"fake": fake, "guidance": 2.0}))
    assert (guided.further, guided.gradient_passes, guided.teacher) == (("muon",), 5, True)
    setup = student_setup(sid.Config.model_validate(values | {"fake": fake, "from": "teacher"}))
    assert (setup.gradient_passes, setup.teacher) == (3, False)
    assert student_setup(lcm.Config.model_validate(values)).averages == 1


def test_a_low_rank_students_state_is_small() -> None:
    designed = Design("sd", partial(unet, 16))
    whole, low = (
        need(designed, Setup(ROWS, "adamw", True, False, lora))
        for lora in (None, LoraSettings(rank=1, alpha=1.0))
    )
    assert low.parameters == whole.parameters
    assert low.step is not None and whole.step is not None and low.step < whole.step
    assert 4 * low.parameters < low.state < 2 * 4 * low.parameters < whole.state


@pytest.mark.parametrize("family", ["sd", "sdxl", "sd3", "sana", "pixart", "pixart_sigma", "pixel"])
def test_a_teacher_that_lies_there_is_known(family: str, tmp_path: Path) -> None:
    make(family, tmp_path / "stock")
    params = yaml.safe_load((ROOT / "params.yaml").read_text())
    params["teacher"] = {
        "backbone": backbone_of(family),
        "train": [],
        "load": [str(tmp_path / "stock")],
        "adopt": [],
    }
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(params))
    chain = load_chain(tmp_path / "params.yaml")
    designed = design(chain)
    assert designed is not None
    for setup in trainings(chain).values():
        estimate = need(designed, setup)
        assert estimate.step and estimate.step > 0
        assert estimate.total == estimate.state + estimate.step


@pytest.mark.parametrize("place", ["nobody/nothing", "file.safetensors"])
def test_a_teacher_that_is_not_there_is_unknown(place: str, tmp_path: Path) -> None:
    params = yaml.safe_load((ROOT / "params.yaml").read_text())
    params["teacher"] = {"backbone": "sd", "train": [], "load": [place], "adopt": []}
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(params))
    assert design(load_chain(tmp_path / "params.yaml")) is None


def test_weights_under_an_adapter_are_halved(default: Design, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = LoraSettings(rank=2, alpha=2.0)
    setup = Setup(rows=1, optimizer="adamw", ema=False, start=True, lora=settings)
    whole = need(default, setup).state
    net = default.make()
    attach(net, settings, default.kind.lora_targets, 0)
    before = sum(weight.nbytes for weight in net.parameters())
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    halve_frozen([net])
    after = sum(weight.nbytes for weight in net.parameters())
    assert need(default, setup).state == whole - (before - after) and after < 0.6 * before


def test_a_start_model_that_is_evaluated_is_halved(default: Design, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    net = default.make()
    before = sum(weight.nbytes for weight in net.parameters())
    halve_frozen([net.requires_grad_(False)])
    saved = before - sum(weight.nbytes for weight in net.parameters())
    assert saved > 0.4 * before
    whole = need(default, ADAMW).state
    assert need(default, replace(ADAMW, evaluates_start=True)).state == whole - saved
    assert need(default, replace(ADAMW, teacher=True)).state == whole + before - saved


def test_advice_is_the_mildest_that_fits_and_true(default: Design) -> None:
    # Latents of 32 x 32, so that activations are most of it.
    config = load_chain(ROOT / "params.yaml").train_teacher
    assert config is not None
    wide = replace(default, make=partial(new_net, config.net, 32, 8, config.text.width))
    setup = Setup(rows=96, optimizer="adamw", ema=False, start=True)

    def total(**changes: Any) -> int:
        return need(wide, replace(setup, accumulates="rows" in changes, **changes)).total

    assert advice(wide, setup, total()) is None
    assert str(advice(wide, setup, total() - 1)).startswith("FEWSTEP_MICRO_BATCH=64:")
    assert str(advice(wide, setup, total(rows=8) + 1)).startswith("FEWSTEP_MICRO_BATCH=8:")
    helped = str(advice(wide, setup, total(rows=1) - 1))
    assert "FEWSTEP_CHECKPOINT_ACTIVATIONS=1" in helped and "lora" not in helped
    assert "`lora: {rank" in str(advice(wide, setup, total(rows=1, checkpointed=True) - 1))
    assert str(advice(wide, setup, 1)).startswith("nothing makes it fit")


def test_switches_that_are_set_are_part_of_the_estimate(
    default: Design, monkeypatch: pytest.MonkeyPatch
) -> None:
    training = TrainingConfig(steps=1, batch_size=32, learning_rate=1e-3)
    before = setup_of(training, None, True)
    monkeypatch.setenv("FEWSTEP_MICRO_BATCH", "8")
    monkeypatch.setenv("FEWSTEP_CHECKPOINT_ACTIVATIONS", "1")
    after = setup_of(training, None, True)
    assert (before.rows, after.rows, after.checkpointed) == (32, 8, True)
    assert need(default, after).total < need(default, before).total
    monkeypatch.setenv("FEWSTEP_MICRO_BATCH", "many")
    with pytest.raises(UserError, match="FEWSTEP_MICRO_BATCH=many"):
        setup_of(training, None, True)
