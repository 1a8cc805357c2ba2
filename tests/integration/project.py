"""A project of its own in a temporary folder, driven through the real DVC command."""

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Self

import yaml

from fewstep.artifacts.workspace import LATE
from tests.began import BEGAN_IN

ROOT = Path(__file__).parents[2]
MINIATURE = Path(__file__).with_name("miniature.yaml")
BIN = Path(sys.executable).parent
LOOKS = "watch_inputs"
"""The stage that looks at what lies outside the project: it runs each time, and changes nothing by itself."""
PATIENCE = 600.0
"""Seconds that a test waits at most for what must come: on a busy host a start alone takes half a minute."""
UP_TO_DATE = f"{LOOKS}:\n\talways changed"
"""Output of `dvc status` where nothing changed."""


def ran(output: str) -> list[str]:
    """The stages that DVC ran, but for the look outside."""
    return [stage for stage in re.findall(r"Running stage '(.*)'", output) if stage != LOOKS]


class Project:
    """Code, dvc.yaml and params.yaml of this repository, with an empty cache."""

    def __init__(self, folder: Path, params: Mapping[str, Any] | None = None) -> None:
        self.folder = folder
        folder.mkdir(parents=True)
        for name in ("src", "stages", "flows"):
            shutil.copytree(
                ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__", "*.egg-info")
            )
        for name in ("dvc.yaml", "prefect.yaml", ".dvcignore", ".gitignore"):
            shutil.copy(ROOT / name, folder)
        self.write_params(params or yaml.safe_load(MINIATURE.read_text()))
        for command in (["git", "init", "-q"], ["dvc", "init", "-q"]):
            subprocess.run(command, cwd=folder, env=self.environment(), check=True)
        shutil.copy(ROOT / ".dvc/config", folder / ".dvc")

    @classmethod
    def at(cls, folder: Path) -> Self:
        """The project that is there."""
        project = cls.__new__(cls)
        project.folder = folder
        return project

    def environment(self, **extra: str) -> dict[str, str]:
        """As pytest began, without what tests and libraries have set since, and with the project's code."""
        # Last, since `make test` begins with programs of the same names that start stages in less time.
        path = f"{BEGAN_IN['PATH']}{os.pathsep}{BIN}"
        ours = {
            "PATH": path,
            "PYTHONPATH": str(self.folder / "src"),
            "DVC_NO_ANALYTICS": "1",
            "FEWSTEP_TRACKERS": "",
            # Else each of a chain's processes would compile the project's code anew.
            "PYTHONDONTWRITEBYTECODE": "",
        }
        return {**BEGAN_IN, **ours, **extra}

    @property
    def params(self) -> dict[str, Any]:
        """params.yaml, to be changed and written back."""
        values: dict[str, Any] = yaml.safe_load((self.folder / "params.yaml").read_text())
        return values

    def write_params(self, params: Mapping[str, Any]) -> None:
        """Replace params.yaml."""
        (self.folder / "params.yaml").write_text(yaml.safe_dump(dict(params), sort_keys=False))

    def run(self, *command: str, **environment: str) -> subprocess.CompletedProcess[str]:
        """A command in the project, its output captured."""
        return subprocess.run(
            command,
            cwd=self.folder,
            env=self.environment(**environment),
            capture_output=True,
            text=True,
            check=False,
        )

    def repro(self, *arguments: str, **environment: str) -> set[str]:
        """`dvc repro`, which must succeed. Returns the stages that ran, but for the look outside."""
        result = self.run("dvc", "repro", *arguments, **environment)
        assert result.returncode == 0, result.stdout + result.stderr
        assert LATE not in result.stdout
        return set(ran(result.stdout))

    def fail(self, *arguments: str) -> str:
        """`dvc repro`, which must fail. Returns its stderr."""
        result = self.run("dvc", "repro", *arguments)
        assert result.returncode != 0, result.stdout
        assert "Traceback" not in result.stderr, result.stderr
        return result.stderr

    def lock(self) -> dict[str, Any]:
        """dvc.lock."""
        stages: dict[str, Any] = yaml.safe_load((self.folder / "dvc.lock").read_text())["stages"]
        return stages

    def interrupted(self, stage: str, when: Callable[[], bool], number: signal.Signals) -> str:
        """Start a stage anew; once `when()` is true, signal all its processes. Returns its output."""
        process = subprocess.Popen(
            ["dvc", "repro", "-f", "-s", stage],
            cwd=self.folder,
            env=self.environment(FEWSTEP_SAVE_EVERY_SECONDS="0"),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
            # Jobs in the background, and what they start, ignore it.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )
        while not when():
            assert process.poll() is None, process.communicate()[0]
            time.sleep(0.002)
        os.killpg(process.pid, number)
        return process.communicate(timeout=PATIENCE)[0]
