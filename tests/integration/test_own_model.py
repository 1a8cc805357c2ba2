"""A teacher named `package.module:factory`: an edit of its code re-runs its adoption, through real DVC."""

from collections.abc import Callable
from typing import Any

import pytest
import yaml

from fewstep.cli import main
from tests.integration.project import MINIATURE, Project

MODEL = """
from torch import nn

from fewstep.backbones.custom import CustomModel
from fewstep.diffusion.denoiser import Prediction
from fewstep.diffusion.schedules import Cosine

from lab.parts import CHANNELS


def build(trained):
    return CustomModel(nn.Conv2d(CHANNELS, CHANNELS, 1, bias=False), (3, 16, 16), Cosine(), Prediction.V)
"""
NAME = "lab.model:build"
COLLECT, ADOPT = f"collect_code@{NAME}", f"adopt_teacher@{NAME}"


def test_an_edit_of_the_module_or_of_what_it_imports_adopts_it_anew(
    new_project: Callable[..., Project], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    params: dict[str, Any] = yaml.safe_load(MINIATURE.read_text())
    params["teacher"] = {"backbone": "custom", "train": [], "load": [], "adopt": [NAME]}
    project = new_project(params | {"export": {}})
    lab = project.folder / "lab"
    lab.mkdir()
    for name, text in (("model", MODEL), ("parts", "CHANNELS = 3\n"), ("train", "")):
        (lab / f"{name}.py").write_text(text)

    assert project.repro(ADOPT) == {COLLECT, ADOPT}
    assert project.repro(ADOPT) == {COLLECT}
    (lab / "train.py").write_text("# no part of the model\n")
    assert project.repro(ADOPT) == {COLLECT}
    for name in ("model", "parts"):
        file = lab / f"{name}.py"
        file.write_text(f"{file.read_text()}# edited\n")
        assert project.repro(ADOPT) == {COLLECT, ADOPT}, name
    assert project.repro("-s", ADOPT) == set()

    project.write_params(params | {"teacher": params["teacher"] | {"adopt": ["lab/model.py"]}})
    monkeypatch.chdir(project.folder)
    with pytest.raises(SystemExit):
        main(["check"])
    assert "teacher.adopt.0 = 'lab/model.py': expected `package.module:factory`" in capsys.readouterr().err
