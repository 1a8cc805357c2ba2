"""Every method of `students:` on every family: whole and low-rank; the same bytes after an interruption."""

from pathlib import Path
from shutil import rmtree
from typing import Any

import pytest
import torch
from torch import Tensor

from fewstep.backbones.model import open_model
from fewstep.core.paths import JUDGE, MODELS
from fewstep.features.attribute_classifier import AttributeClassifier
from fewstep.sources.shapes import LABELS
from fewstep.students.learn import Task, learn, method_module
from tests.miniature import draw_triplets, import_miniature, prepare_images
from tests.pipelines import MAKERS

METHODS: dict[str, dict[str, Any]] = {
    "direct": {},
    "lcm": {"grid": 4, "guidance": 2.0},
    "sdxs": {
        "fake": {"learning_rate": 0.01},
        "warmup_steps": 1,
        "guidance": 2.0,
        "gan": {"from_step": 1, "optimizer": {"learning_rate": 0.01}},
    },
}
"""Method -> its parameters beside the training's."""
FILES = Path(method_module("direct").__file__).parent
TRAINING = {"steps": 3, "batch_size": 4, "learning_rate": 0.01, "ema": 0.5}
LORA = {"rank": 2, "alpha": 2.0}


@pytest.fixture(autouse=True)
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "no")
    monkeypatch.setenv("FEWSTEP_TRACKERS", "")
    monkeypatch.setenv("FEWSTEP_SAVE_EVERY_SECONDS", "0")


def untrained_judge() -> Path:
    """The chain's classifier with random weights."""
    torch.manual_seed(0)
    AttributeClassifier(LABELS, widths=(8, 16), feature_dim=8).save(JUDGE, 64, {})
    return JUDGE


def test_no_method_is_left_out() -> None:
    made_by_a_section_of_its_own = {"reflow", "halve", "__init__"}
    assert {file.stem for file in FILES.glob("*.py")} - made_by_a_section_of_its_own == set(METHODS)


@pytest.mark.parametrize("lora", [None, LORA], ids=["whole", "lora"])
@pytest.mark.parametrize("family", sorted(MAKERS))
@pytest.mark.parametrize("method", METHODS)
def test_a_student_is_trained_and_resumed_to_the_same_bytes(
    method: str, family: str, lora: dict[str, float] | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    prepare_images(16 if family == "pixel" else 64)
    backbone = import_miniature(family)
    draw_triplets(backbone)
    values = {"method": method, "from": "teacher", "training": TRAINING, "lora": lora} | METHODS[method]
    module = method_module(method)
    config = module.Config.model_validate(values)
    features = untrained_judge() if config.needs_feature_maps else None
    task = Task("distill", "student", method, config, [0], 0, features)

    def weights() -> dict[str, Tensor]:
        learn(task)
        found: dict[str, Tensor] = open_model(MODELS / "student", backbone).net.state_dict()
        rmtree(MODELS / "student")
        return found

    whole = weights()
    start = backbone.net.state_dict()
    assert any(not torch.equal(value, start[name]) for name, value in whole.items())
    assert all(value.isfinite().all() for value in whole.values())

    batch = module.METHOD.batch

    def interrupted(self: Any, rows: Any) -> Any:
        if rows.step == 2:
            raise KeyboardInterrupt
        return batch(self, rows)

    with monkeypatch.context() as patched:
        patched.setattr(module.METHOD, "batch", interrupted)
        with pytest.raises(KeyboardInterrupt):
            learn(task)
    resumed = weights()
    assert all(torch.equal(value, whole[name]) for name, value in resumed.items())
