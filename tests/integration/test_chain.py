"""The miniature chain through real DVC: whole, cached, reproducible, and edited."""

import json
import os
import random
import signal
import sys
from pathlib import Path

import pytest
import torch
from diffusers import StableDiffusionPipeline
from PIL import Image

from fewstep.cli import main
from tests.integration.project import BIN, Project, ran

SHORT_ROUND = {
    "from": "halve-4",
    "steps": 2,
    "data": "encoded",
    "weight": "snr_plus_one",
    "training": {"steps": 2, "batch_size": 8, "learning_rate": 1e-3},
}


def test_the_whole_chain_runs_and_a_second_run_does_nothing(finished: Project) -> None:
    assert (finished.folder / "reports/index.html").stat().st_size > 10_000
    models = finished.params["evaluate"]["models"]
    for model, steps in models.items():
        metrics = json.loads((finished.folder / f"metrics/{model}.json").read_text())
        assert [int(n) for n in metrics["steps"]] == sorted(steps)
    assert finished.repro() == set()


def test_a_page_that_is_not_there_is_made(copied: Project) -> None:
    """As in a fresh clone on a machine like that of the lock file, where no input of the page differs."""
    (copied.folder / "reports/index.html").unlink()
    assert copied.repro() == {"report"}
    assert (copied.folder / "reports/index.html").is_file()


@pytest.mark.parametrize(
    ("edit", "stale"),
    [
        (("sampling", "guidance", 2.0), {"generate_triplets", "evaluation_set", "evaluate"}),
        (
            ("sampling", "negative_prompt", "a red star"),
            {"generate_triplets", "compress", "halve", "distill", "evaluation_set", "evaluate"},
        ),
        (("train_judge", "noise", 0.1), {"train_judge"}),
        (("halve", "2", SHORT_ROUND), {"halve@2"}),
        (("evaluation_set", "grid", 3), {"evaluation_set"}),
        (("data", "count", 200), {"prepare_data"}),
    ],
)
def test_an_edited_value_is_seen_by_its_stages_alone(
    copied: Project, edit: tuple[str, str, object], stale: set[str]
) -> None:
    section, key, value = edit
    params = copied.params
    params[section][key] = value
    copied.write_params(params)
    status = json.loads(copied.run("dvc", "status", "--json").stdout)
    changed = {
        name
        for name, changes in status.items()
        if any("params.yaml" in c.get("changed deps", {}) for c in changes if isinstance(c, dict))
    }
    assert {name.split("@")[0] for name in changed} == {name.split("@")[0] for name in stale}


def test_a_student_that_starts_elsewhere_is_one_edit(copied: Project) -> None:
    params = copied.params
    params["students"]["one_step"]["from"] = "reflow"
    copied.write_params(params)
    assert copied.repro("-s", "distill@one_step") == {"distill@one_step"}
    manifest = json.loads((copied.folder / "artifacts/models/one_step/manifest.json").read_text())
    assert "reflow" in manifest["made_from"]


def test_an_experiment_runs_what_depends_on_its_edit_alone_and_its_differences_are_commands(
    copied: Project,
) -> None:
    for command in (
        "config user.name tester",
        "config user.email tester@localhost",
        "add -A",
        "commit -qm chain",
    ):
        assert copied.run("git", *command.split(" ", 3)).returncode == 0
    override = "students.no_halving.training.learning_rate=0.01"
    result = copied.run("dvc", "exp", "run", "-n", "faster", "-S", override)
    assert result.returncode == 0, result.stderr
    assert ran(result.stdout) == ["distill@no_halving", "evaluate@no_halving", "report"]
    params = json.loads(copied.run("dvc", "params", "diff", "--json").stdout)
    (key,) = params["params.yaml"]
    assert key == "students.no_halving.training.learning_rate"
    metrics = json.loads(copied.run("dvc", "metrics", "diff", "--json").stdout)
    assert set(metrics) == {"metrics/no_halving.json"}


@pytest.mark.parametrize(
    ("stage", "training"),
    [("train_teacher", "teacher"), ("distill@one_step", "one_step")],
)
def test_killed_at_a_random_step_a_stage_resumes_to_the_same_bytes(
    copied: Project, stage: str, training: str
) -> None:
    expected = copied.lock()
    step = random.randint(1, 3)

    def reached() -> bool:
        return any(copied.folder.glob(f".checkpoints/{stage}/*/{training}/step-*{step}"))

    copied.interrupted(stage, reached, signal.SIGKILL)
    result = copied.run("dvc", "repro", "-f", "-s", stage)
    assert result.returncode == 0, result.stderr
    assert f"{training}: resumes at step" in result.stdout, f"killed at step {step}: {result.stdout}"
    assert copied.lock() == expected


def test_a_stage_in_a_forked_process_makes_the_same_bytes(copied: Project) -> None:
    again = ["dvc", "repro", "-f", "-s", "halve@2"]
    made = copied.lock()
    usual = f"{BIN}{os.pathsep}{os.environ['PATH']}"
    for command in ([sys.executable, "-m", "fewstep.preload", *again], again):
        done = copied.run(*command, PATH=usual)
        assert ran(done.stdout) == ["halve@2"], done.stderr
        assert copied.lock() == made


def test_interrupted_it_saves_and_leaves_dvc_clean(copied: Project) -> None:
    expected = copied.lock()

    def training() -> bool:
        return any(copied.folder.glob(".checkpoints/reflow@reflow/*/reflow/step-*"))

    output = copied.interrupted("reflow@reflow", training, signal.SIGINT)
    assert "run `dvc repro` again to go on" in output
    assert any(copied.folder.glob(".checkpoints/reflow@reflow/*/reflow/step-*"))
    result = copied.run("dvc", "repro", "-f", "-s", "reflow@reflow")
    assert result.returncode == 0, result.stderr
    assert "reflow: resumes at step" in result.stdout
    assert copied.lock() == expected


def test_the_teacher_is_a_stock_diffusers_pipeline(finished: Project) -> None:
    pipeline = StableDiffusionPipeline.from_pretrained(finished.folder / "artifacts/models/teacher")
    pipeline.set_progress_bar_config(disable=True)
    image = pipeline(
        "a small red star on a blue background", num_inference_steps=2, height=16, width=16,
        generator=torch.Generator().manual_seed(0),
    ).images[0]  # fmt: skip
    assert image.size == (16, 16)


@pytest.mark.parametrize(("model", "steps"), [("teacher", 3), ("one_step", None)])
def test_sample_draws_with_any_model(
    finished: Project, model: str, steps: int | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "grid.png"
    chosen = ["--steps", str(steps)] if steps else []
    asked = f"--model artifacts/models/{model} --prompt star --count 2 --clip 3 --enlarge 2".split()
    monkeypatch.chdir(finished.folder)
    main(["sample", *asked, "--out", str(out), *chosen])
    assert Image.open(out).size == (2 * 32 + 3 * 2, 32 + 2 * 2)


def test_evaluate_prints_what_the_stage_writes_and_nothing_but_json(finished: Project) -> None:
    count = finished.params["evaluation_set"]["pictures"]
    result = finished.run("fewstep", "evaluate", "--model", "one_step:1", "--pictures", str(count))
    assert result.returncode == 0, result.stderr
    decoder, text = json.JSONDecoder(), result.stdout.strip()
    record, end = decoder.raw_decode(text)
    assert record == json.loads((finished.folder / "metrics/one_step.json").read_text())
    known = json.loads((finished.folder / "artifacts/evaluation_set/figures.json").read_text())["floor"]
    assert text[end:].strip() == "" if known is None else json.loads(text[end:]) == {"model": "floor"} | known


def test_check_prints_the_plan(finished: Project) -> None:
    result = finished.run("fewstep", "check")
    assert result.returncode == 0, result.stderr
    for stage in (
        "prepare_data",
        "train_teacher",
        "generate_triplets@1",
        "halve-2",
        "one_step",
        "evaluate@teacher",
    ):
        assert stage in result.stdout
