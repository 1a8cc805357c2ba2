"""The size of a saved state, before the networks exist, against that of a real state."""

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fewstep.checks.memory import Setup, setup_of
from fewstep.checks.states import saved
from fewstep.checks.tracing import Design
from fewstep.config.training import OptimizerConfig, TrainingConfig
from fewstep.training.loop import advance
from fewstep.training.lora import LoraSettings, attach
from fewstep.training.method import Group, Method, Rows
from fewstep.training.saving import Saver
from fewstep.training.state import State
from tests.pipelines import unet

DESIGN = Design("sd", partial(unet, 16))
LOW = LoraSettings(rank=2, alpha=2.0)


class Squares(Method):
    """Two networks whose weights shrink: one has two averages."""

    def __init__(self, optimizer: Any, lora: LoraSettings | None) -> None:
        self.nets: list[nn.Module] = [DESIGN.make(), DESIGN.make()]
        if lora is not None:
            for net in self.nets:
                attach(net, lora, DESIGN.kind.lora_targets, 0)
        values = {"learning_rate": 1e-3, "optimizer": optimizer}
        self.training = TrainingConfig.model_validate(values | {"steps": 2, "batch_size": 1, "ema": 0.9})
        self.groups = {
            "student": Group({"net": self.nets[0]}, self.training, {"slow": 0.99}),
            "fake": Group({"net": self.nets[1]}, OptimizerConfig(learning_rate=1e-3)),
        }

    def batch(self, rows: Rows) -> Tensor:
        return torch.ones(len(rows.positions))

    def losses(self, group: str, batch: Tensor, step: int) -> dict[str, Tensor]:
        net = self.nets[("student", "fake").index(group)]
        weights = [weight for weight in net.parameters() if weight.requires_grad]
        return {"square": torch.stack([weight.square().sum() for weight in weights]).sum()}


@pytest.mark.parametrize("lora", [None, LOW], ids=["full", "lora"])
@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_the_estimated_size_is_that_on_disk(
    optimizer: str, lora: LoraSettings | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "no")
    monkeypatch.setenv("FEWSTEP_TRACKERS", "")
    method = Squares(optimizer, lora)
    state = State(method, tmp_path / "state")
    advance(state, "squares", 0, 1)
    with Saver(state) as saver:
        saver.save()
    (file,) = tmp_path.rglob("state.safetensors")
    setup = Setup(1, optimizer, ema=True, start=True, lora=lora, further=("adamw",), averages=1)
    numbers = sum(8 for value in state.tensors().values() if value.ndim < 2)
    header = 8 + int.from_bytes(file.read_bytes()[:8], "little")
    assert state.size == file.stat().st_size - header
    assert state.size - numbers <= saved(DESIGN, setup, DESIGN) <= state.size


def test_an_average_in_host_memory_is_saved_too(monkeypatch: pytest.MonkeyPatch) -> None:
    training = TrainingConfig(steps=1, batch_size=1, learning_rate=1e-3, ema=0.9)
    monkeypatch.setenv("FEWSTEP_EMA_ON_HOST", "1")
    here = saved(DESIGN, setup_of(training, None, True), DESIGN)
    monkeypatch.setattr("fewstep.checks.memory.device", lambda: torch.device("cuda"))
    there = setup_of(training, None, True)
    assert there.ema_on_host and not there.ema
    assert saved(DESIGN, there, DESIGN) == here
