"""Two real processes (gloo, on CPUs) through accelerate's launcher, against one."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from accelerate.utils import DistributedType
from safetensors.torch import load_file

from fewstep.errors import UserError
from fewstep.processes import require

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "tests/several.py"
TWO = f"{sys.executable} -m accelerate.commands.launch --multi_gpu --num_processes 2 --main_process_port 0"
CONFIG = {
    "compute_environment": "LOCAL_MACHINE",
    "distributed_type": "MULTI_GPU",
    "gpu_ids": "all",
    "machine_rank": 0,
    "main_process_port": 0,
    "mixed_precision": "no",
    "num_machines": 1,
    "num_processes": 2,
}
"""What `accelerate config` writes for two GPUs of one machine."""
STEPS, BATCH = 9, 7


def started(folder: Path, launch: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """The training in `folder`; every step is kept."""
    folder.mkdir(exist_ok=True)
    ours = {
        "ACCELERATE_MIXED_PRECISION": "no",
        "CUDA_VISIBLE_DEVICES": "",
        "FEWSTEP_LAUNCH": launch,
        "FEWSTEP_SAVE_EVERY_SECONDS": "0",
        "FEWSTEP_TRACKERS": "",
        "HF_HOME": str(folder / "home"),
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": str(ROOT / "src"),
    }
    return subprocess.run(
        [sys.executable, SCRIPT, *arguments],
        cwd=folder,
        env={**os.environ, **ours},
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )


def seen(folder: Path) -> list[dict[int, list[int]]]:
    """Per process, step -> positions of its rows; where a step was run twice, the last time."""
    files = sorted(folder.glob("seen-*.jsonl"))
    return [dict(json.loads(line) for line in file.read_text().splitlines()) for file in files]


def losses(said: str) -> dict[int, float]:
    """Step -> the loss that was reported after it."""
    return {int(n): float(x) for n, x in re.findall(rf"coder:.* (\d+)/{STEPS} .*coder loss (\S+)", said)}


def test_two_processes_stopped_killed_and_resumed_train_what_one_trains(tmp_path: Path) -> None:
    """One is stopped by SIGTERM at step 3, one by SIGKILL at step 6; what is left goes on."""
    alone, two = tmp_path / "one", tmp_path / "two"
    whole = started(alone, "")
    assert whole.returncode == 0, whole.stderr

    stopped = started(two, TWO, "stop=3")
    assert stopped.returncode != 0
    assert stopped.stderr.count("interrupted; run `dvc repro` again") == 2, "both processes end cleanly"
    assert [state.name for state in (two / "states/coder").iterdir()] == ["step-00000004"]

    killed = started(two, TWO, "kill=6")
    assert killed.returncode != 0
    assert "resumes at step 4" in killed.stdout
    assert not (two / "weights.safetensors").exists()

    config = two / "home/accelerate/default_config.yaml"
    config.parent.mkdir(parents=True)
    config.write_text(yaml.safe_dump(CONFIG))
    ended = started(two, "auto")
    assert ended.returncode == 0, ended.stderr
    assert "resumes at step 6" in ended.stdout

    rows = seen(two)
    assert len(rows) == 2
    for step in range(STEPS):
        first, second = rows[0][step], rows[1][step]
        assert not set(first) & set(second)
        assert sorted(first + second) == seen(alone)[0][step] == list(range(step * BATCH, (step + 1) * BATCH))

    reported = losses(stopped.stdout) | losses(killed.stdout) | losses(ended.stdout)
    assert reported == pytest.approx(losses(whole.stdout), rel=1e-3), "the batch's, not a process's"
    assert len(reported) == STEPS

    one, found = (load_file(folder / "weights.safetensors") for folder in (alone, two))
    assert one.keys() == found.keys()
    for name, weight in one.items():
        torch.testing.assert_close(found[name], weight, rtol=0, atol=1e-5)


def test_a_loss_that_is_no_number_in_one_process_stops_both(tmp_path: Path) -> None:
    result = started(tmp_path, TWO, "nan=5")
    assert result.returncode != 0
    assert result.stderr.count("error: coder: coder loss became nan at step 5, on samples 35 to 41") == 2
    assert json.loads((tmp_path / "states/coder/failed_batch.json").read_text())["positions"] == list(
        range(35, 42)
    )


def test_what_processes_cannot_share_is_refused() -> None:
    with pytest.raises(UserError, match="shards networks over processes"):
        require(DistributedType.FSDP, 2, 16)
    with pytest.raises(UserError, match="batch_size = 3 has no sample for each of 4 processes"):
        require(DistributedType.MULTI_GPU, 4, 3)
    require(DistributedType.MULTI_GPU, 3, 4)
