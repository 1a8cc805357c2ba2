"""What a user does wrong is answered by one line that names the file or key, before or instead of a stage."""

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from fewstep import methods
from fewstep.cli import main
from fewstep.students.learn import method_module
from tests.integration.project import MINIATURE, Project

WRONG: list[tuple[str, Any, str]] = [
    ("students.one_step.from", "halve-3", "students.one_step.from = 'halve-3': no such model"),
    ("students.one_step.method", "magic", "students.one_step.method = 'magic': no such method"),
    ("reflow.reflow.training.learning_rate", -1, "reflow.reflow.training.learning_rate = -1"),
    ("reflow.reflow.trainig", {}, "reflow.reflow.trainig = {}: no such parameter"),
    ("halve.4.from", "halve-2", "would be made from itself"),
    ("evaluate.models.nobody", [1], "evaluate.models.nobody: no such model"),
    ("data.resolution", 20, "data.resolution = 20: Input should be a multiple of 8"),
    ("teacher.load", ["./nowhere"], "exactly one entry"),
    ("features", "weights.pt", "features = weights.pt: features need one of: artifact judge, "),
    ("seed", "zero", "seed = 'zero'"),
    (
        "data.path",
        "https://me:word@host/x.tar",
        "data.path = 'https://...@host/x.tar': credentials would stay",
    ),
]


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """A project in which only params.yaml is changed."""
    return Project(tmp_path_factory.mktemp("checked") / "project")


@pytest.mark.parametrize(("key", "value", "message"), WRONG, ids=[key for key, _, _ in WRONG])
def test_check_names_the_key_its_value_and_what_is_allowed(
    project: Project,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    key: str,
    value: object,
    message: str,
) -> None:
    params: dict[str, Any] = yaml.safe_load(MINIATURE.read_text())
    *path, last = key.split(".")
    section = params
    for part in path:
        section = section[part]
    section[last] = value
    project.write_params(params)
    monkeypatch.chdir(project.folder)
    with pytest.raises(SystemExit) as ended:
        main(["check"])
    assert ended.value.code == 1
    assert message in capsys.readouterr().err


def test_what_a_new_method_lacks_is_not_taken_for_a_method_that_is_not_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "new.py").write_text("import nowhere_to_be_found")
    monkeypatch.setattr(methods, "__path__", [*methods.__path__, str(tmp_path)])
    with pytest.raises(ModuleNotFoundError, match="nowhere_to_be_found"):
        method_module("new")


def test_a_stage_reports_the_same_without_a_traceback(project: Project) -> None:
    params: dict[str, Any] = yaml.safe_load(MINIATURE.read_text())
    params["data"] |= {"source": "folder", "path": "nowhere"}
    project.write_params(params)
    assert "data.path = nowhere" in project.fail("prepare_data")


def test_a_diverging_training_stops_with_step_and_samples(copied: Project) -> None:
    params = copied.params
    params["reflow"]["reflow"]["training"] |= {"learning_rate": 1e30, "steps": 20}
    copied.write_params(params)
    error = copied.fail("-s", "reflow@reflow")
    assert re.search(r"(loss|gradient norm) became (nan|inf) at step \d+", error)
    assert "failed_batch.json" in error
    assert any(copied.folder.glob(".checkpoints/reflow@reflow/*/reflow/failed_batch.json"))


def test_a_changed_artifact_is_refused_by_name(copied: Project) -> None:
    path = copied.folder / "artifacts/models/reflow/manifest.json"
    text = path.read_text().replace('"path"', '"track"')
    path.unlink()  # DVC may have linked it to its cache
    path.write_text(text)
    weights = copied.folder / "artifacts/models/reflow/net/config.json"
    changed = weights.read_text() + " "
    weights.unlink()
    weights.write_text(changed)
    assert "artifacts/models/reflow/net/config.json: differs" in copied.fail("-s", "halve@4")
