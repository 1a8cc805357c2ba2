"""Stages that are killed (SIGKILL) at random moments end with the same bytes, and make nothing twice."""

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import yaml

from fewstep.config.data import DataConfig
from fewstep.core.files import PARTIAL
from fewstep.core.paths import CHECKPOINTS, DATA, ENCODED, TEACHER
from fewstep.preparation.prepare import prepare
from tests.miniature import imported

ROOT = Path(__file__).parents[2]
KILLS = 10
FINISHED = (".zip", ".tar", ".safetensors")
"""Suffixes of finished parts and shards."""
WORKERS = 2


class Killing:
    """Runs a stage in a folder of its own, and kills it.

    artifact: what the stage makes, relative to the folder. made: the finished files of unfinished work that
    were seen, with the time at which each was written.
    """

    def __init__(self, folder: Path, artifact: Path, stage: str, *arguments: str) -> None:
        self.folder, self.artifact, self.stage = folder, folder / artifact, stage
        self.command = [sys.executable, str(ROOT / "stages" / f"{stage}.py"), *arguments]
        self.made: dict[str, int] = {}

    def run(self, kill_after: float | None = None) -> float | None:
        """Seconds of work until the stage's end; None if it was killed, after `kill_after` seconds."""
        environment = os.environ | {"PYTHONPATH": str(ROOT / "src"), "FEWSTEP_WORKERS": str(WORKERS)}
        with subprocess.Popen(
            self.command, cwd=self.folder, env=environment, stdout=subprocess.PIPE, text=True
        ) as process:
            assert process.stdout is not None
            line = process.stdout.readline()
            assert f"{self.stage}: writes" in line, line
            begun = time.monotonic()
            if kill_after is not None:
                time.sleep(kill_after)
                process.send_signal(signal.SIGKILL)
            process.communicate()
        assert process.returncode in (0, -signal.SIGKILL)
        return time.monotonic() - begun if process.returncode == 0 else None

    def kill(self, times: int, seconds: float) -> None:
        """Kill it at random moments. seconds: of its work without a kill, of which most runs do a part."""
        moments = random.Random(0)
        most = 0
        for _ in range(times):
            if self.run(kill_after=moments.uniform(0, seconds / 2)) is not None or self.artifact.exists():
                # It came to its end, though it may have been killed after that. It begins anew.
                shutil.rmtree(self.artifact)
                self.made = {}
                continue
            self.check_work()
            most = max(most, len(self.made))
            print(f"{self.stage}: killed with {len(self.made)} finished files")
        assert most > 1, "it was killed before anything was finished"

    def check_work(self) -> None:
        """What was finished before is still the same file; at most one file of each worker is unfinished."""
        files = [file for file in self.folder.glob(f"{CHECKPOINTS}/{self.stage}*/*/*") if file.is_file()]
        now = {file.name: file.stat().st_mtime_ns for file in files if file.suffix in FINISHED}
        assert self.made.items() <= now.items()
        self.made = now
        assert sum(file.name.endswith(PARTIAL) for file in files) <= WORKERS


def everything(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def test_prepare_data(tmp_path: Path) -> None:
    data = {"source": "shapes", "count": 4000, "resolution": 128, "heldout": 0.3, "shard_size": 300}
    killed, whole = (Killing(tmp_path / name, DATA, "prepare_data") for name in ("killed", "whole"))
    for each in (killed, whole):
        each.folder.mkdir()
        (each.folder / "params.yaml").write_text(yaml.safe_dump({"seed": 0, "data": data}))
    compare(killed, whole)


def test_encode_data(tmp_path: Path) -> None:
    data = DataConfig(source="shapes", count=1600, resolution=64, heldout=0.1, shard_size=40)
    prepare(data, 0, tmp_path / "whole" / DATA)
    shutil.copytree(imported("sd") / TEACHER, tmp_path / "whole" / TEACHER)
    params = {"encode_data": {"train": {"dtype": "float16"}}}
    (tmp_path / "whole/params.yaml").write_text(yaml.safe_dump(params))
    shutil.copytree(tmp_path / "whole", tmp_path / "killed")
    made = ENCODED / "train"
    killed, whole = (Killing(tmp_path / name, made, "encode_data", "train") for name in ("killed", "whole"))
    compare(killed, whole)


def compare(killed: Killing, whole: Killing) -> None:
    """Both make the same artifact, and no unfinished work is left."""
    seconds = whole.run()
    assert seconds is not None
    killed.kill(KILLS, seconds)
    assert killed.run() is not None
    assert everything(killed.artifact) == everything(whole.artifact)
    assert not [*killed.folder.glob(f"{CHECKPOINTS}/{killed.stage}*/*")]
