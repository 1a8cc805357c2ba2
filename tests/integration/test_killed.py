"""Stages that are killed (SIGKILL) at random moments end with the same bytes, and make nothing twice."""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from fewstep.core.files import PARTIAL
from fewstep.core.paths import CHECKPOINTS, DATA

ROOT = Path(__file__).parents[2]
KILLS = 10
WORKERS = 2


class Killing:
    """Runs a stage in a folder of its own, and kills it.

    made: the finished files of unfinished work that were seen, with the time at which each was written.
    """

    def __init__(self, folder: Path, stage: str, *arguments: str) -> None:
        self.folder, self.stage = folder, stage
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
        for _ in range(times):
            if self.run(kill_after=moments.uniform(0, seconds / 2)) is not None:
                self.made = {}  # it came to its end before, and begins anew
                continue
            self.check_work()
            print(f"{self.stage}: killed with {len(self.made)} finished files")

    def check_work(self) -> None:
        """What was finished before is still the same file; at most one file of each worker is unfinished."""
        files = [file for file in self.folder.glob(f"{CHECKPOINTS}/{self.stage}*/*/*") if file.is_file()]
        now = {file.name: file.stat().st_mtime_ns for file in files if file.suffix in (".zip", ".tar")}
        assert self.made.items() <= now.items()
        self.made = now
        assert sum(file.suffix == PARTIAL for file in files) <= WORKERS


def everything(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


@pytest.mark.parametrize("kills", [KILLS])
def test_prepare_data_is_killed(tmp_path: Path, kills: int) -> None:
    data = {"source": "shapes", "count": 4000, "resolution": 128, "heldout": 0.3, "shard_size": 300}
    killed, whole = Killing(tmp_path / "killed", "prepare_data"), Killing(tmp_path / "whole", "prepare_data")
    for each in (killed, whole):
        each.folder.mkdir()
        (each.folder / "params.yaml").write_text(yaml.safe_dump({"seed": 0, "data": data}))
    seconds = whole.run()
    assert seconds is not None
    killed.kill(kills, seconds)
    assert killed.made, "it was killed before anything was finished"
    assert killed.run() is not None
    assert everything(killed.folder / DATA) == everything(whole.folder / DATA)
    assert not [*killed.folder.glob(f"{CHECKPOINTS}/prepare_data/*")]
