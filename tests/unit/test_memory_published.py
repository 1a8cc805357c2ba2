"""Memory of low-rank trainings of published models: the estimate, and tensors of their real geometry."""

from collections import Counter
from collections.abc import Iterable
from functools import partial
from typing import Any

import pytest
import torch
from diffusers import UNet2DConditionModel
from torch import Tensor

from fewstep.backbones.low_rank import twin
from fewstep.checks.memory import Design, Setup, need
from fewstep.checks.tracing import trace
from fewstep.training.half import halve_frozen
from fewstep.training.lora import LoraSettings, attach
from tests.unit.test_compression_sizes import UNETS

LORA = LoraSettings(rank=64, alpha=64.0)
FLOAT32, BFLOAT16 = torch.float32, torch.bfloat16
FAMILIES = {"SDXL": "sdxl", "SD 1": "sd"}


@pytest.fixture(autouse=True)
def precision(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    trace.cache_clear()


def bytes_by_dtype(tensors: Iterable[Tensor]) -> Counter[torch.dtype]:
    """Bytes of different tensors, by their dtype."""
    counted: Counter[torch.dtype] = Counter()
    for tensor in {id(tensor): tensor for tensor in tensors}.values():
        counted[tensor.dtype] += tensor.nbytes
    return counted


@pytest.mark.parametrize(("name", "rows", "gigabytes"), [("SDXL", 4, 24), ("SD 1", 2, 8)])
def test_a_low_rank_training_beside_its_teacher(
    name: str, rows: int, gigabytes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Student and teacher on one base: weights, gradients and moments on the meta device, by dtype."""
    designed = Design(FAMILIES[name], partial(UNet2DConditionModel, **UNETS[name]))
    for halved in (True, False):
        monkeypatch.setenv("FEWSTEP_HALF_FROZEN", str(int(halved)))
        with torch.device("meta"):
            teacher: Any = designed.make().requires_grad_(False)
            student = twin(teacher)
            attach(student, LORA, designed.kind.lora_targets, 0)
        halve_frozen([teacher, student])
        trained = [weight for weight in student.parameters() if weight.requires_grad]
        optimizer = torch.optim.AdamW(trained, lr=1e-4)
        for weight in trained:
            weight.grad = torch.zeros_like(weight)
        optimizer.step()
        weights = bytes_by_dtype([*teacher.parameters(), *student.parameters()])
        gradients = bytes_by_dtype(weight.grad for weight in trained if weight.grad is not None)
        moments = bytes_by_dtype(
            slot for state in optimizer.state.values() for slot in state.values() if slot.ndim
        )
        adapter = sum(weight.nbytes for weight in trained)
        assert gradients == {FLOAT32: adapter} and moments == {FLOAT32: 2 * adapter}
        base = sum(weight.numel() for weight in teacher.parameters())
        if halved:
            assert weights[BFLOAT16] > 0.99 * 2 * base, "linear and convolutional layers are nearly all of it"
            assert weights[FLOAT32] - adapter == 4 * (base - weights[BFLOAT16] // 2)
        else:
            assert weights == {FLOAT32: 4 * base + adapter}
        setup = Setup(
            rows, "adamw", ema=False, start=True, lora=LORA, checkpointed=True, evaluates_start=True
        )
        estimate = need(designed, setup)
        assert estimate.state == weights.total() + moments.total()
        assert estimate.step is not None and estimate.step > gradients.total()
        assert estimate.total < gigabytes * 1e9 or not halved
