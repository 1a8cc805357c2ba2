"""Unfinished work: when it is resumed, what is reported when it is not, and that nobody deletes it."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from fewstep.artifacts.workspace import Workspace, unfinished
from fewstep.cli import main
from fewstep.core.errors import UserError
from fewstep.core.files import read_json, write_json
from fewstep.core.paths import CHECKPOINTS, TEACHER
from fewstep.training.loop import train
from tests.began import BEGAN_IN, PYTHON
from tests.miniature import imported
from tests.unit.test_training_parts import Fit

ROOT = Path(__file__).parents[2]
PARAMS = {"seed": 0, "fit": {"steps": 40, "learning_rate": 0.01}}


@pytest.fixture(autouse=True)
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "no")
    monkeypatch.setenv("FEWSTEP_TRACKERS", "")
    monkeypatch.setenv("FEWSTEP_SAVE_EVERY_SECONDS", "0")
    write_json(Path("data/manifest.json"), {"kind": "data"})


def begin(params: dict[str, object] | None = None) -> Workspace:
    return Workspace("fit", params or PARAMS, {"data": Path("data")})


def stopped_at(step: int, work: Workspace) -> None:
    """As by Ctrl-C; this process stays in the workspace until it leaves."""
    with pytest.raises(KeyboardInterrupt):
        train(Fit("adamw", stop=step), "fit", 0, work.folder)


def changed(**values: object) -> dict[str, object]:
    return {"seed": 0, "fit": {"steps": 40, "learning_rate": 0.01} | values}


def test_the_same_work_is_resumed_and_gone_when_it_is_finished(capsys: pytest.CaptureFixture[str]) -> None:
    work = begin()
    stopped_at(17, work)
    again = begin()
    assert again.folder == work.folder and again.metadata == {}
    train(Fit("adamw"), "fit", 0, again.folder)
    assert "resumes at step 17" in capsys.readouterr().out
    again.finish()
    assert not again.folder.exists()


@pytest.mark.parametrize("what", ["params", "input", "code"])
def test_other_work_is_reported_and_kept(
    what: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    work = begin()
    stopped_at(17, work)
    params = PARAMS
    if what == "params":
        params = changed(learning_rate=0.02)
        named = "fit.learning_rate = 0.02, then 0.01"
    elif what == "input":
        write_json(Path("data/manifest.json"), {"kind": "other"})
        named = "input data"
    else:
        copy = Path("keyed.py").resolve()
        copy.write_text((ROOT / "src/fewstep/core/keyed.py").read_text() + "# a comment\n")
        monkeypatch.setattr(sys.modules["fewstep.core.keyed"], "__file__", str(copy))
        named = "code fewstep.core.keyed"
    other = begin(params)
    output = capsys.readouterr().out
    assert other.folder != work.folder and (work.folder / "fit/step-00000017").is_dir()
    assert f"does not resume unfinished work (fit at step 17) in {work.folder}, because of {named}." in output
    assert f"FEWSTEP_RESUME={work.folder.name}" in output and "fewstep clean fit" in output
    train(Fit("adamw"), "fit", 0, other.folder)
    assert "resumes at" not in capsys.readouterr().out
    other.finish()
    assert (work.folder / "fit/step-00000017").is_dir(), "finishing one leaves the other"


def test_other_work_is_resumed_when_it_is_named_and_the_manifest_records_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    whole, work = Fit("adamw"), begin()
    train(whole, "fit", 0, Path("whole"))
    stopped_at(17, work)
    work.leave()
    monkeypatch.setenv("FEWSTEP_RESUME", work.folder.name)
    for _ in range(2):  # the second time it has moved
        other = begin(changed(comment="new"))
        assert other.metadata == {"resumed": ["fit.comment = 'new', then None"]}
    assert "resumes unfinished work (fit at step 17)" in capsys.readouterr().out
    resumed = Fit("adamw")
    train(resumed, "fit", 0, other.folder)
    assert torch.equal(resumed.weight, whole.weight)
    assert not work.folder.exists()
    third = begin(changed(comment="new", more=1))
    assert third.metadata == {}, "the name is that of the work before it was resumed"


def test_other_work_is_resumed_after_work_was_begun_in_its_place(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """As a user does: the stage reports the old work and begins anew, is stopped, and is to go back."""
    whole, old = Fit("adamw"), begin()
    train(whole, "fit", 0, Path("whole"))
    stopped_at(17, old)
    old.leave()
    anew = begin(changed(comment="new"))
    stopped_at(3, anew)
    anew.leave()
    monkeypatch.setenv("FEWSTEP_RESUME", old.folder.name)
    again = begin(changed(comment="new"))
    assert again.folder == anew.folder
    assert again.metadata == {"resumed": ["fit.comment = 'new', then None"]}
    resumed = Fit("adamw")
    train(resumed, "fit", 0, again.folder)
    assert "resumes at step 17" in capsys.readouterr().out and torch.equal(resumed.weight, whole.weight)
    aside = [work for work in unfinished("fit") if work.folder != again.folder]
    assert [work.progress for work in aside] == ["fit at step 3"], "nothing is lost"
    again.leave()
    monkeypatch.setenv("FEWSTEP_RESUME", aside[0].folder.name)
    assert (begin(changed(comment="new")).folder / "fit/step-00000003").is_dir()


def test_a_finished_training_that_was_kept_goes_on_for_longer(monkeypatch: pytest.MonkeyPatch) -> None:
    def fit(steps: int, folder: Path) -> torch.Tensor:
        method = Fit("adamw")
        method.training = method.training.model_copy(update={"steps": steps, "decay": "constant"})
        method.groups["fit"].optimizer = method.training
        train(method, "fit", 0, folder)
        return method.weight

    monkeypatch.setenv("FEWSTEP_KEEP_STATE", "1")
    short = begin(changed(steps=20))
    before = fit(20, short.folder)
    short.finish()
    monkeypatch.setenv("FEWSTEP_RESUME", short.folder.name)
    long = begin(changed(steps=30))
    after = fit(30, long.folder)
    assert long.metadata == {"resumed": ["fit.steps = 30, then 20"]}
    assert torch.equal(after, fit(30, Path("whole"))) and not torch.equal(after, before)


def test_work_that_kept_nothing_is_not_mentioned(capsys: pytest.CaptureFixture[str]) -> None:
    begin()
    begin(changed(steps=30))
    assert "does not resume" not in capsys.readouterr().out and not [*unfinished()]


def test_work_of_an_earlier_version_is_reported(capsys: pytest.CaptureFixture[str]) -> None:
    old = CHECKPOINTS / "fit/0123456789abcdef"
    (old / "fit/step-00000005").mkdir(parents=True)
    (old / "fit/step-00000005/state.json").write_text("{}")
    begin()
    assert f"(fit at step 5) in {old}, because of made by an earlier version" in capsys.readouterr().out
    assert old.is_dir()


def test_clean_deletes_what_no_stage_is_working_on(capsys: pytest.CaptureFixture[str]) -> None:
    work = begin()
    stopped_at(3, work)
    with pytest.raises(SystemExit):
        main(["clean", "fit"])
    assert "a stage is at work here; stop it first" in capsys.readouterr().err and work.folder.is_dir()
    work.leave()
    main(["clean", "other"])
    assert "nothing unfinished" in capsys.readouterr().out and work.folder.is_dir()
    main(["clean"])
    assert f"deleted: unfinished work (fit at step 3) in {work.folder}" in capsys.readouterr().out
    assert not work.folder.exists()


def test_work_that_is_in_use_is_not_taken_over(monkeypatch: pytest.MonkeyPatch) -> None:
    work = begin()
    stopped_at(3, work)
    monkeypatch.setenv("FEWSTEP_RESUME", work.folder.name)
    with pytest.raises(UserError, match="a stage is at work here"):
        begin(changed(steps=30))
    assert (work.folder / "fit/step-00000003").is_dir()


SCRIPT = """
import sys
from pathlib import Path
from fewstep.backbones.registry import open_backbone
from fewstep.artifacts.workspace import Workspace
backbone = open_backbone(Path("teacher"))
print(Workspace("stage", {}, {}).folder.name)
"""


def test_editing_an_adapter_changes_the_fingerprint(tmp_path: Path) -> None:
    """A copy of the package, with a comment more in the file of the teacher's family."""
    shutil.copytree(ROOT / "src/fewstep", "code/fewstep", ignore=shutil.ignore_patterns("__pycache__"))
    Path("teacher").symlink_to(imported("pixart") / TEACHER)
    Path("script.py").write_text(SCRIPT)

    def fingerprint() -> str:
        ran = subprocess.run(
            [PYTHON, "script.py"],
            env={**BEGAN_IN, "PYTHONPATH": "code", "PYTHONDONTWRITEBYTECODE": "1"},
            capture_output=True,
            text=True,
            check=True,
        )
        return ran.stdout.split()[-1]

    before = fingerprint()
    assert fingerprint() == before
    for file, matters in (("pixart", True), ("flux", False)):
        adapter = Path(f"code/fewstep/backbones/{file}.py")
        text = adapter.read_text()
        adapter.write_text(f"{text}# a comment\n")
        assert (fingerprint() != before) is matters, file
        adapter.write_text(text)


def test_what_work_was_begun_with_is_written_down() -> None:
    origin = read_json(begin().folder / "origin.json")
    assert origin["params"] == PARAMS and origin["inputs"].keys() == {"data"} and origin["resumed"] == []
    assert "fewstep.core.keyed" in origin["source"]
