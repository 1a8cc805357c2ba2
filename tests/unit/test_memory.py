"""What a training is said to take, against what real tensors take."""

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import diffusers as d
import pytest
import torch
import yaml
from torch.utils.flop_counter import FlopCounterMode

from fewstep.checks.plan import trainings, work
from fewstep.checks.teacher import design
from fewstep.config.chain import load_chain
from fewstep.config.training import TrainingConfig
from fewstep.diffusion.denoiser import Prediction
from fewstep.diffusion.schedules import RectifiedFlow
from fewstep.errors import UserError
from fewstep.hardware import computing
from fewstep.memory import (
    Design,
    Setup,
    advice,
    need,
    operations,
    optimizer_bytes,
    saved_bytes,
    setup_of,
    speed,
    trace,
)
from fewstep.objectives.lora import LoraSettings
from fewstep.training.method import Player
from fewstep.training.optimization import optimizers_of
from tests.imports import ROOT
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
    found = design(load_chain(ROOT / "params.yaml"))
    assert found is not None
    return found


def really_saved(designed: Design, checkpointed: bool = False) -> int:
    """Bytes that autograd saves in a forward pass of the real network."""
    net: Any = designed.make()
    backbone = designed.kind({}, RectifiedFlow(), Prediction.FLOW)
    conditions = backbone.example_conditions(net, ROWS, designed.length)
    x = torch.zeros(ROWS, net.config.in_channels, net.config.sample_size, net.config.sample_size)
    with computing():
        return saved_bytes(net, lambda: backbone.network(net)(x, torch.ones(ROWS), conditions), checkpointed)


@pytest.mark.parametrize("checkpointed", [False, True])
def test_activations_are_a_real_networks(default: Design, checkpointed: bool) -> None:
    for designed in (
        default,
        Design(
            "pixart",
            partial(pixart_transformer, use_additional_conditions=False),
            pipeline="PixArtSigmaPipeline",
        ),
    ):
        setup = Setup(ROWS, "adamw", False, True, None, checkpointed)
        assert need(designed, setup).activations == pytest.approx(
            really_saved(designed, checkpointed), rel=0.01
        )


def test_operations_are_a_real_networks_in_both_directions(default: Design) -> None:
    net: Any = default.make()
    backbone = default.kind({}, RectifiedFlow(), Prediction.FLOW)
    conditions = backbone.example_conditions(net, ROWS, default.length)
    x = torch.zeros(ROWS, net.config.in_channels, net.config.sample_size, net.config.sample_size)
    with FlopCounterMode(display=False) as counter:
        backbone.network(net)(x, torch.ones(ROWS), conditions).sum().backward()
    counted = counter.get_total_flops()
    # The first convolution's input needs no gradient.
    assert operations(default, ADAMW, ROWS) == pytest.approx(counted, rel=0.02)
    recomputed = operations(default, replace(ADAMW, checkpointed=True), ROWS)
    assert recomputed == pytest.approx(counted * 4 / 3, rel=0.02)
    low = operations(default, replace(ADAMW, lora=LoraSettings(rank=1, alpha=1.0)), ROWS)
    assert low is not None and 0.6 * counted < low < 0.8 * counted


def test_the_plan_says_what_each_stage_computes(default: Design) -> None:
    chain = load_chain(ROOT / "params.yaml")
    found = work(chain, default)
    once = trace(default, None, False).operations
    assert once
    triplets = chain.triplets
    assert found["generate_triplets@0"] == triplets.shard_size * triplets.steps * 2 * once
    assert found["halve-4"] and found["reflow"]
    assert found["reflow"] / found["halve-4"] == pytest.approx(
        chain.reflow["reflow"].training.steps / chain.halve["4"].training.steps
    )
    assert speed(0.0) > 1e8


def test_bfloat16_keeps_less(monkeypatch: pytest.MonkeyPatch) -> None:
    exact = trace(SD15, None, False)
    trace.cache_clear()
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    half = trace(SD15, None, False)
    assert exact.each and half.each and 0.4 < half.each / exact.each < 0.9


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_optimizer_state_is_that_of_real_tensors(optimizer: Any, default: Design) -> None:
    net = default.make()
    training = TrainingConfig(steps=1, batch_size=1, learning_rate=1e-3, optimizer=optimizer)
    optimizers = optimizers_of(Player({"net": net}, training))
    for weight in net.parameters():
        weight.grad = torch.zeros_like(weight)
    for each in optimizers:
        each.step()
    states = [value for each in optimizers for slots in each.state.values() for value in slots.values()]
    found = sum(value.numel() * value.element_size() for value in states if value.ndim)
    traced = trace(default, None, False)
    assert optimizer_bytes(traced, optimizer) == found
    weights = sum(p.numel() * p.element_size() for p in net.parameters())
    whole = need(default, Setup(ROWS, optimizer, ema=True, start=True))
    assert whole.state == 4 * weights + found


def test_stable_diffusion_as_published() -> None:
    found = need(SD15, ADAMW)
    assert found.parameters == 859_520_964
    assert found.activations is not None and 1e9 < found.activations < 1e12
    assert found.state == 5 * 4 * 859_520_964


def test_a_low_rank_students_state_is_small() -> None:
    designed = Design("sd", partial(unet, 16))
    whole, low = (
        need(designed, Setup(ROWS, "adamw", True, False, lora))
        for lora in (None, LoraSettings(rank=1, alpha=1.0))
    )
    assert low.parameters == whole.parameters
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
        found = need(designed, setup)
        assert found.activations and found.activations > 0
        assert found.total == found.state + found.activations


@pytest.mark.parametrize("place", ["nobody/nothing", "file.safetensors"])
def test_a_teacher_that_is_not_there_is_unknown(place: str, tmp_path: Path) -> None:
    params = yaml.safe_load((ROOT / "params.yaml").read_text())
    params["teacher"] = {"backbone": "sd", "train": [], "load": [place], "adopt": []}
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(params))
    assert design(load_chain(tmp_path / "params.yaml")) is None


def test_advice_is_the_mildest_that_fits_and_true(default: Design) -> None:
    setup = Setup(rows=96, optimizer="adamw", ema=False, start=True)

    def total(**changes: Any) -> int:
        return need(default, Setup(**vars(setup) | changes)).total

    assert advice(default, setup, total()) is None
    assert str(advice(default, setup, total() - 1)).startswith("FEWSTEP_MICRO_BATCH=64:")
    assert str(advice(default, setup, total(rows=8) + 1)).startswith("FEWSTEP_MICRO_BATCH=8:")
    helped = str(advice(default, setup, total(rows=1, checkpointed=True)))
    assert "FEWSTEP_CHECKPOINT_ACTIVATIONS=1" in helped and "lora" not in helped
    assert "`lora: {rank" in str(advice(default, setup, total(rows=1, checkpointed=True) - 1))
    assert str(advice(default, setup, 1)).startswith("nothing makes it fit")


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
