"""What a flow makes of dvc.yaml and of a stage's last words."""

import threading
from pathlib import Path
from typing import Any

import pytest
import yaml
from dvc.repo import Repo  # type: ignore[import-untyped]
from flows.ablation import clone, spread
from flows.attempts import batch_sizes
from flows.code import git
from flows.graph import stages_of
from flows.overrides import override
from flows.process import OutOfMemory, StageFailed, TransientFailure, failure, run_dvc
from flows.slots import Stopped
from tools.imports import ROOT

from fewstep.core.errors import UserError
from fewstep.core.stage import OUT_OF_MEMORY


@pytest.fixture
def workspace(tmp_path: Path) -> Path:
    """a -> b -> d, a -> c -> d, a -> d."""

    def stage(name: str, *needs: str, **more: object) -> dict[str, object]:
        return {
            "cmd": f"echo {name} > {name}.txt",
            "deps": [f"{n}.txt" for n in needs],
            "outs": [f"{name}.txt"],
            **more,
        }

    stages = {
        "a": stage("a"),
        "b": stage("b", "a", meta={"gpus": 2, "retries": 3}),
        "c": stage("c", "a"),
        "d": stage("d", "a", "b", "c"),
        "e": stage("e"),
    }
    (tmp_path / "dvc.yaml").write_text(yaml.safe_dump({"stages": stages}))
    Repo.init(tmp_path, no_scm=True)
    return tmp_path


def test_stages_come_after_what_they_need_and_name_no_implied_edge(workspace: Path) -> None:
    stages = {stage.name: stage for stage in stages_of(workspace, ["d"])}
    assert list(stages) == ["a", "b", "c", "d"]
    assert stages["d"].needs == ("b", "c") and stages["b"].needs == ("a",)
    assert (
        stages["b"].demands.gpus == 2 and stages["b"].demands.retries == 3 and stages["a"].demands.gpus == 0
    )
    assert {stage.name for stage in stages_of(workspace)} == {"a", "b", "c", "d", "e"}
    with pytest.raises(UserError, match="targets: f: no such stage; there are a, b, c, d, e"):
        stages_of(workspace, ["f"])


def test_a_wrong_demand_is_named(workspace: Path) -> None:
    described = yaml.safe_load((workspace / "dvc.yaml").read_text())
    described["stages"]["b"]["meta"] = {"gpu": 1}
    (workspace / "dvc.yaml").write_text(yaml.safe_dump(described))
    with pytest.raises(UserError, match=r"dvc\.yaml: b\.meta\.gpu = 1: no such parameter"):
        stages_of(workspace)


def test_a_stage_runs_prints_its_lines_and_then_has_nothing_to_do(workspace: Path) -> None:
    for expected in (True, False):
        lines: list[str] = []
        ran = run_dvc(["repro", "-s", "a"], "a", workspace, threading.Event(), lines.append)
        assert ran == expected and any("'a'" in line for line in lines)
    stop = threading.Event()
    stop.set()
    with pytest.raises(Stopped):
        run_dvc(["repro", "-s", "c"], "c", workspace, stop, lambda line: None)


FAILED = "ERROR: failed to reproduce 'a': failed to run: python a.py, exited with"


@pytest.mark.parametrize(
    ("output", "kind", "message"),
    [
        (["error: params.yaml: seed is missing", f"{FAILED} 1"], StageFailed, "params.yaml: seed"),
        ([f"error: {OUT_OF_MEMORY}: CUDA out of memory"], OutOfMemory, "CUDA out of memory"),
        ([f"{FAILED} -9"], TransientFailure, "exited with -9"),
        ([f"{FAILED} 137"], TransientFailure, "137"),
        ([f"{FAILED} 1"], StageFailed, "with 1"),
        (["ERROR: failed to pull data: ConnectionError: refused"], TransientFailure, "refused"),
    ],
)
def test_the_last_lines_decide_whether_a_failure_is_transient(
    output: list[str], kind: type, message: str
) -> None:
    error = failure("a", output)
    assert type(error) is kind and message in str(error)


def test_an_override_is_written_with_the_comments_kept(tmp_path: Path) -> None:
    text = (ROOT / "params.yaml").read_text()
    (tmp_path / "params.yaml").write_text(text)
    chain = override(tmp_path, {"students.one_step.training.steps": 7, "triplets.count": 3000})
    assert chain.students["one_step"].training.steps == 7 and chain.triplets.count == 3000
    written = (tmp_path / "params.yaml").read_text()
    assert "# What is computed." in written
    before, after = yaml.safe_load(text), yaml.safe_load(written)
    before["students"]["one_step"]["training"]["steps"], before["triplets"]["count"] = 7, 3000
    assert after == before


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"students.nobody.from": "reflow"}, "nobody.from': no such parameter; there are one_step"),
        ({"seed.more": 1}, "'seed.more': no such parameter; there are no keys in seed"),
        ({"students.one_step.from": "halve@4"}, "no such model; there are teacher, reflow, halve-4"),
    ],
)
def test_an_impossible_override_changes_nothing(
    overrides: dict[str, object], message: str, tmp_path: Path
) -> None:
    text = (ROOT / "params.yaml").read_text()
    (tmp_path / "params.yaml").write_text(text)
    with pytest.raises(UserError, match=message):
        override(tmp_path, overrides)
    assert (tmp_path / "params.yaml").read_text() == text


def test_a_variants_clone_is_the_workspace_as_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for who in ("AUTHOR", "COMMITTER"):
        monkeypatch.setenv(f"GIT_{who}_NAME", "t")
        monkeypatch.setenv(f"GIT_{who}_EMAIL", "t@t")
    root = tmp_path / "workspace"
    root.mkdir()
    (root / "params.yaml").write_text((ROOT / "params.yaml").read_text())
    for name in ("kept", "changed", "staged", "gone"):
        (root / name).write_text("before")
    git(root, "init", "-q")
    Repo.init(root)
    git(root, "add", "-A")
    git(root, "commit", "-qm", "all")
    (root / "changed").write_text("after")
    (root / "staged").write_text("after")
    (root / "new").write_text("after")
    git(root, "add", "staged", "new")
    (root / "other").write_text("after")
    (root / "gone").unlink()
    for seed in (3, 4):
        folder = clone(root, "variant", {"seed": seed})
        texts = {path.name: path.read_text() for path in folder.iterdir() if path.is_file()}
        assert texts["kept"] == "before" and "gone" not in texts
        assert [texts[name] for name in ("changed", "staged", "new", "other")] == ["after"] * 4
        assert yaml.safe_load(texts["params.yaml"])["seed"] == seed
    with Repo(str(folder)) as copied, Repo(str(root)) as original:
        assert copied.cache.local.path == original.cache.local.path


def test_a_grid_is_all_combinations_and_a_list_is_itself() -> None:
    grid = spread({"a.b": [1, 2], "c": ["x", "Y"], "d": 3})
    assert list(grid.values()) == [{"a.b": b, "c": c, "d": 3} for b in (1, 2) for c in ("x", "Y")]
    assert next(iter(grid)) == "b-1-c-x-d-3"
    listed = spread([{}, {"a.b": 1}, {"z.b": 1}])
    assert list(listed) == ["as-it-is", "b-1", "b-1-2"] and listed["b-1-2"] == {"z.b": 1}
    nothings: list[Any] = [{}, [], [{}]]
    for nothing in nothings:
        with pytest.raises(UserError, match="variants: nothing to vary"):
            spread(nothing)


def test_the_batch_sizes_of_a_stage_are_collected_at_any_depth() -> None:
    sections = {
        "train_teacher": {"training": {"batch_size": 96}, "vae": {"training": {"batch_size": 128}}, "x": 1},
        "seed": 0,
    }
    assert sorted(batch_sizes(sections)) == [96, 128]
