"""Two real processes (gloo, on CPUs) through accelerate's launcher, against one: copies, and shards."""

import json
import re
import subprocess
from pathlib import Path
from shutil import copytree

import pytest
import torch
import yaml
from safetensors.torch import load_file
from torch import Tensor

from fewstep.core.paths import MODELS, TEACHER
from tests.began import BEGAN_IN, PYTHON
from tests.miniature import draw_triplets, import_miniature, prepare_images

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "tests/several.py"
TWO = f"{PYTHON} -m accelerate.commands.launch --num_processes 2 --main_process_port 0"
COPIES, SHARDS = f"{TWO} --multi_gpu", f"{TWO} --use_fsdp"
CONFIG = {
    "compute_environment": "LOCAL_MACHINE",
    "gpu_ids": "all",
    "machine_rank": 0,
    "main_process_port": 0,
    "mixed_precision": "no",
    "num_machines": 1,
    "num_processes": 2,
}
"""What `accelerate config` writes for two GPUs of one machine, but for this:"""
KINDS: dict[str, dict[str, object]] = {
    "copies": {"distributed_type": "MULTI_GPU"},
    "shards": {"distributed_type": "FSDP", "fsdp_config": {"fsdp_version": 2}},
}
STEPS, BATCH = 9, 7


def started(
    folder: Path,
    launch: str,
    *arguments: str,
    script: Path = SCRIPT,
    precision: str = "no",
    steps: int = 12,
    **more: str,
) -> subprocess.CompletedProcess[str]:
    """The training in `folder`, with further variables; every step is kept."""
    folder.mkdir(exist_ok=True)
    ours = {
        "ACCELERATE_MIXED_PRECISION": precision,
        "CUDA_VISIBLE_DEVICES": "",
        "FEWSTEP_LAUNCH": launch,
        "FEWSTEP_SAVE_EVERY_SECONDS": "0",
        "FEWSTEP_TRACKERS": "tensorboard",
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": str(ROOT / "src"),
        "FEWSTEP_STEPS": str(steps),
    }
    return subprocess.run(
        [PYTHON, script, *arguments],
        cwd=folder,
        env={**BEGAN_IN, **ours, **more},
        capture_output=True,
        text=True,
        check=False,
        timeout=1200,
    )


def seen(folder: Path) -> list[dict[int, list[int]]]:
    """Per process, step -> positions of its rows; where a step was run twice, the last time."""
    files = sorted(folder.glob("seen-*.jsonl"))
    return [dict(json.loads(line) for line in file.read_text().splitlines()) for file in files]


def losses(output: str) -> dict[int, float]:
    """Step -> the loss that was reported after it."""
    return {int(n): float(x) for n, x in re.findall(rf"coder:.* (\d+)/{STEPS} .*coder loss (\S+)", output)}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The training in one process: its folder and its output."""
    folder = tmp_path_factory.mktemp("one")
    result = started(folder, "")
    assert result.returncode == 0, result.stderr
    return folder, result.stdout


@pytest.mark.parametrize(
    ("begins", "goes_on", "ends"),
    [(COPIES, COPIES, "copies"), (SHARDS, "", COPIES), ("", SHARDS, "shards")],
    ids=["copies", "shards, one process, copies", "one process, shards"],
)
def test_processes_stopped_killed_and_resumed_train_what_one_trains(
    begins: str, goes_on: str, ends: str, whole: tuple[Path, str], tmp_path: Path
) -> None:
    """One is stopped by SIGTERM at step 3, one by SIGKILL at step 6; what is left goes on.

    ends: a launcher's command, or one of `KINDS` for what `accelerate config` has written.
    """
    (alone, expected), two = whole, tmp_path / "two"

    stopped = started(two, begins, "stop=3")
    assert stopped.returncode != 0
    interruptions = stopped.stderr.count("interrupted; run `dvc repro` again")
    assert interruptions == (2 if begins else 1), "every process ends cleanly"
    assert [state.name for state in (two / "states/coder").glob("step-*")] == ["step-00000004"]

    killed = started(two, goes_on, "kill=6")
    assert killed.returncode != 0
    assert "resumes at step 4" in killed.stdout
    assert not (two / "weights.safetensors").exists()

    if ends in KINDS:
        config = two / "home/accelerate/default_config.yaml"
        config.parent.mkdir(parents=True)
        config.write_text(yaml.safe_dump(CONFIG | KINDS[ends]))
        ended = started(two, "auto", HF_HOME=str(two / "home"))
    else:
        ended = started(two, ends)
    assert ended.returncode == 0, ended.stderr
    assert "resumes at step 6" in ended.stdout

    rows = seen(two)
    assert len(rows) == 2
    for step in range(STEPS):
        positions = [position for process in rows for position in process.get(step, [])]
        assert sorted(positions) == seen(alone)[0][step] == list(range(step * BATCH, (step + 1) * BATCH))

    reported = losses(stopped.stdout) | losses(killed.stdout) | losses(ended.stdout)
    assert reported == pytest.approx(losses(expected), rel=1e-3), "the batch's, not a process's"
    assert len(reported) == STEPS
    assert_equal(alone / "weights.safetensors", two / "weights.safetensors", 1e-5)


def assert_equal(one: Path, other: Path, tolerance: float) -> None:
    """Two files of the same tensors, to the rounding of their sums."""
    expected, actual = load_file(one), load_file(other)
    assert expected.keys() == actual.keys()
    for name, weight in expected.items():
        torch.testing.assert_close(actual[name], weight, rtol=0, atol=tolerance)


TOLERANCE = {"half": 0.05, "lcm": 0.01}
"""Share of a model's change in training. lcm's loss is nearly the absolute error, whose gradient is a sign:
near 0, rounding decides it."""


def test_students_in_shards_are_those_of_one_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a real U-Net, under each switch; a process holds its half of every training's state."""
    alone, two = tmp_path / "one", tmp_path / "two"
    alone.mkdir()
    monkeypatch.chdir(alone)
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "no")
    backbone = import_miniature("sd")
    prepare_images()
    draw_triplets(backbone)
    copytree(alone, two)
    for folder, launch in ((alone, ""), (two, SHARDS)):
        result = started(folder, launch, script=ROOT / "tests/students.py", FEWSTEP_TRACKERS="")
        assert result.returncode == 0, result.stderr

    weights = Path("diffusion_pytorch_model.safetensors")
    teacher, smaller = load_file(TEACHER / "unet" / weights), load_file(MODELS / "smaller/net" / weights)
    for model in sorted((alone / MODELS).iterdir()):
        if model.name == TEACHER.name:
            continue
        start = smaller if model.name == "compiled" else teacher
        for file in model.rglob("*.safetensors"):
            one, other = load_file(file), load_file(two / file.relative_to(alone))
            assert one.keys() == other.keys()
            moved = distance(one, start) if one.keys() <= start.keys() else distance(one, {})
            assert distance(one, other) < TOLERANCE.get(model.name, 1e-3) * moved, file
        for config in model.glob("net/config.json"):
            assert config.read_bytes() == (two / config.relative_to(alone)).read_bytes()

    (first, second) = (json.loads((two / f"held-{rank}.json").read_text()) for rank in range(2))
    assert set(json.loads((alone / "held-0.json").read_text()).values()) == {1.0}
    for name, share in first.items():
        assert 0.4 < share < 0.6, f"{name}: rows of small matrices divide unevenly"
        assert share + second[name] == pytest.approx(1, abs=0.01), "together they hold all but counts once"


ADVERSARIES = ROOT / "tests/adversaries.py"


@pytest.fixture(scope="module")
def adversaries(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Several networks, trained in one process to their equilibrium."""
    folder = tmp_path_factory.mktemp("adversaries")
    result = started(folder, "", script=ADVERSARIES, steps=300)
    assert result.returncode == 0, result.stderr
    return folder / "weights.safetensors"


def test_several_networks_reach_their_equilibrium(adversaries: Path) -> None:
    """Student, fake and slow average are the real map, from 1.7 away; the base is as it was."""
    weights = load_file(adversaries)
    for name in ("student", "fake", "slow"):
        of_network = {key: weight for key, weight in weights.items() if key.startswith(name)}
        down, up = (
            next(of_network[key] for key in of_network if half in key) for half in ("lora_A", "lora_B")
        )
        far = (weights["base"] + up @ down - weights["real"]).abs().max()
        assert far < 0.03 and (weights["base"] - weights["real"]).abs().max() > 1, name


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Several networks, trained in one process without interruption."""
    folder = tmp_path_factory.mktemp("alone")
    result = started(folder, "", script=ADVERSARIES)
    assert result.returncode == 0, result.stderr
    return folder


@pytest.mark.parametrize("launch", ["", COPIES, SHARDS], ids=["one process", "copies", "shards"])
def test_several_networks_killed_and_resumed_end_alike(launch: str, alone: Path, tmp_path: Path) -> None:
    """To the same bytes where the processes are as many; to rounding, where they are more than one."""
    whole, torn = tmp_path / "whole" if launch else alone, tmp_path / "torn"
    if launch:
        result = started(whole, launch, script=ADVERSARIES)
        assert result.returncode == 0, result.stderr
    killed = started(torn, launch, "kill=7", script=ADVERSARIES)
    assert killed.returncode != 0 and not (torn / "weights.safetensors").exists()
    ended = started(torn, launch, script=ADVERSARIES)
    assert ended.returncode == 0 and "resumes at step 7" in ended.stdout, ended.stderr
    one, other, resumed = (folder / "weights.safetensors" for folder in (alone, whole, torn))
    assert other.read_bytes() == resumed.read_bytes()
    assert_equal(one, other, 1e-4)


def distance(one: dict[str, Tensor], two: dict[str, Tensor]) -> float:
    """Euclidean; what is not there is zero."""
    return sum(float((value - two.get(name, 0)).square().sum()) for name, value in one.items()) ** 0.5


def test_an_overflow_in_one_processs_shards_changes_no_weight_in_any(tmp_path: Path) -> None:
    alone, two = tmp_path / "one", tmp_path / "two"
    for folder, launch in ((alone, ""), (two, f"{SHARDS} --mixed_precision fp16")):
        result = started(folder, launch, "huge=4", precision="fp16")
        assert result.returncode == 0, result.stderr
        kept = load_file(folder / "states/coder/step-00000009/state.safetensors")
        assert kept["coder/scaler"].tolist() == [2.0**15, 4.0], "halved, then four good steps"
        assert kept["coder/optimizer/net/first.bias/step"].item() == STEPS - 1
    assert_equal(alone / "weights.safetensors", two / "weights.safetensors", 2e-3)


@pytest.mark.parametrize("launch", [COPIES, SHARDS], ids=["copies", "shards"])
def test_a_loss_that_is_no_number_in_one_process_stops_both(launch: str, tmp_path: Path) -> None:
    result = started(tmp_path, launch, "nan=5")
    assert result.returncode != 0
    assert result.stderr.count("error: coder: coder loss became nan at step 5, on samples 35 to 41") == 2
    assert json.loads((tmp_path / "states/coder/failed_batch.json").read_text())["positions"] == list(
        range(35, 42)
    )


EDITED = """
import os
from pathlib import Path
from fewstep.artifacts.workspace import Workspace
from fewstep.core.stage import run
def main():
    Workspace("train", {"training": {"steps": int(os.environ["RANK"])}}, {})
run(main, writes=Path("model"), several=True)
"""


def test_processes_that_read_different_files_stop_before_they_write(tmp_path: Path) -> None:
    script = tmp_path / "edited.py"
    script.write_text(EDITED)
    result = started(tmp_path, COPIES, script=script)
    assert result.returncode != 0
    message = "error: train: its processes read different files, because one was edited while they started"
    assert result.stderr.count(message) == 2, result.stderr
    assert f"{message} (training.steps = 1, then 0): run it again" in result.stderr
    assert not (tmp_path / ".checkpoints").exists()
