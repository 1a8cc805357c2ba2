"""Networks whose weights are half precision on the disk."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from fewstep.backbones.model import open_model
from fewstep.config.training import StudentTrainingConfig
from fewstep.core.paths import MODELS, TRIPLETS
from fewstep.methods import reflow
from fewstep.students.learn import Task, learn
from tests.miniature import draw_triplets, import_miniature, prepare_images

TRAINING = StudentTrainingConfig(steps=2, batch_size=4, learning_rate=0.05)
FILE = "net/diffusion_pytorch_model.safetensors"


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_weights_are_rounded_once_and_opened_as_float32(
    dtype: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "no")
    monkeypatch.setenv("FEWSTEP_TRACKERS", "")
    backbone = import_miniature("sd")
    prepare_images()
    draw_triplets(backbone)

    def train(name: str, **more: Any) -> dict[str, torch.Tensor]:
        config = reflow.Config.model_validate({"from": "teacher", "training": TRAINING} | more)
        # One task's name: it seeds the training.
        learn(Task("reflow", name, "reflow", config, [TRIPLETS / "0"], 0))
        state: dict[str, torch.Tensor] = open_model(MODELS / name, backbone).net.state_dict()
        return state

    half = train("student", dtype=dtype)
    on_disk = load_file(MODELS / "student" / FILE)
    (MODELS / "student").rename(MODELS / "before")
    full = train("student")
    kind = getattr(torch, dtype)
    assert {weight.dtype for weight in on_disk.values()} == {kind}
    assert {weight.dtype for weight in half.values()} == {torch.float32}
    for name, weight in full.items():
        assert torch.equal(half[name], weight.to(kind).float()), name
    assert any(not torch.equal(half[name], weight) for name, weight in full.items())
    low = train("adapter", dtype=dtype, lora={"rank": 2, "alpha": 1.0})
    assert {weight.dtype for weight in low.values()} == {torch.float32}
    adapter = load_file(MODELS / "adapter/lora/pytorch_lora_weights.safetensors")
    assert {weight.dtype for weight in adapter.values()} == {torch.float32}
