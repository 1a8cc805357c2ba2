"""The method of docs/adding_a_method.md, as it stands there."""

import re
from pathlib import Path

import pytest
import torch

from fewstep import methods
from fewstep.backbones.model import open_model
from fewstep.backbones.registry import open_backbone
from fewstep.core.errors import UserError
from fewstep.core.paths import MODELS, TEACHER, TRIPLETS
from fewstep.students.learn import Task, learn, method_module
from tests.miniature import draw_triplets, import_miniature, prepare_images

PAGE = Path(__file__).parents[2] / "docs/adding_a_method.md"
ENTRY = {
    "method": "adversarial",
    "from": "teacher",
    "discriminator": {"learning_rate": 0.01},
    "training": {"steps": 4, "batch_size": 4, "learning_rate": 0.01},
}


@pytest.fixture(autouse=True)
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The page's code as a file of `methods/`."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "no")
    monkeypatch.setenv("FEWSTEP_TRACKERS", "")
    (code,) = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    (tmp_path / "new").mkdir()
    (tmp_path / "new/adversarial.py").write_text(code)
    monkeypatch.setattr(methods, "__path__", [*methods.__path__, str(tmp_path / "new")])


@pytest.mark.parametrize("lora", [None, {"rank": 2, "alpha": 2.0}], ids=["whole", "lora"])
def test_the_pages_method_trains_a_student(lora: dict[str, float] | None) -> None:
    backbone = import_miniature("sd")
    prepare_images()
    draw_triplets(backbone)
    config = method_module("adversarial").Config.model_validate(ENTRY | {"lora": lora})
    learn(Task("distill@mine", "mine", "adversarial", config, [TRIPLETS / "0"], 0))
    student = open_model(MODELS / "mine", open_backbone(TEACHER))
    assert student.steps == 1
    pairs = zip(student.net.parameters(), backbone.net.parameters(), strict=True)
    assert any(not torch.equal(new, old) for new, old in pairs)


def test_its_parameters_are_checked() -> None:
    from fewstep.config.base import validate

    config = method_module("adversarial").Config
    with pytest.raises(UserError, match=r"students\.mine\.weight = -1"):
        validate(config, ENTRY | {"weight": -1}, "students.mine")
    with pytest.raises(UserError, match=r"mine\.data = 'encoded': this method learns from triplets alone"):
        validate(config, ENTRY | {"data": "encoded"}, "students.mine")
