"""Stages that are killed (SIGKILL) at random moments end with the same bytes, and make nothing twice.

A kill costs the start of three processes, so there are few of them here.
`FEWSTEP_TEST_KILLS=10` asks for ten.
"""

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
from tests.began import BEGAN_IN, PYTHON
from tests.miniature import imported

ROOT = Path(__file__).parents[2]
KILLS = int(os.environ.get("FEWSTEP_TEST_KILLS", "3"))
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
        self.command = [str(ROOT / "stages" / f"{stage}.py"), *arguments]
        self.made: dict[str, int] = {}

    def run(self, kill_at: int | None = None, and_after: float = 0) -> bool:
        """Whether the stage came to its end.

        kill_at, and_after: it is killed `and_after` seconds after it finished `kill_at` files.
        """
        environment = BEGAN_IN | {"PYTHONPATH": str(ROOT / "src"), "FEWSTEP_WORKERS": str(WORKERS)}
        # Not preloaded where it is killed: what kills its client kills its workers as well.
        program = PYTHON if kill_at is None else sys.executable
        with subprocess.Popen(
            [program, *self.command], cwd=self.folder, env=environment, stdout=subprocess.PIPE, text=True
        ) as process:
            assert process.stdout is not None
            line = process.stdout.readline()
            assert f"{self.stage}: writes" in line, line
            if kill_at is not None:
                goal = len(self.made) + kill_at
                while len(self.finished()) < goal and process.poll() is None:
                    time.sleep(0.01)
                time.sleep(and_after)
                process.send_signal(signal.SIGKILL)
            process.communicate()
        assert process.returncode in (0, -signal.SIGKILL)
        return process.returncode == 0

    def kill(self, times: int) -> None:
        """Kill it at random moments: while it starts, and when it has finished a few more files."""
        moments = random.Random(0)
        most = 0
        for number in range(times):
            more = moments.randint(0, 3) if number else 1
            if self.run(kill_at=more, and_after=moments.uniform(0, 0.2)) or self.artifact.exists():
                # It came to its end, though it may have been killed after that. It begins anew.
                shutil.rmtree(self.artifact)
                self.made = {}
                continue
            self.check_work()
            most = max(most, len(self.made))
            print(f"{self.stage}: killed with {len(self.made)} finished files")
        assert most, "every run came to its end before it was killed"

    def work(self) -> list[Path]:
        """The files of unfinished work."""
        return [file for file in self.folder.glob(f"{CHECKPOINTS}/{self.stage}*/*/*") if file.is_file()]

    def finished(self) -> list[Path]:
        return [file for file in self.work() if file.suffix in FINISHED]

    def check_work(self) -> None:
        """What was finished before is still the same file; at most one file of each worker is unfinished."""
        now = {file.name: file.stat().st_mtime_ns for file in self.finished()}
        assert self.made.items() <= now.items()
        self.made = now
        assert sum(file.name.endswith(PARTIAL) for file in self.work()) <= WORKERS


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
    assert whole.run()
    killed.kill(KILLS)
    assert killed.run()
    assert everything(killed.artifact) == everything(whole.artifact)
    assert not [*killed.folder.glob(f"{CHECKPOINTS}/{killed.stage}*/*")]
