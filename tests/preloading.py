"""Commands and scripts behind `python -m fewstep.preload`, and the same as usual."""

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

BEGIN = [sys.executable, "-m", "fewstep.preload"]
SAY = "import json, os; print(json.dumps(dict(os.environ)), flush=True); input()"
LOADED = "import sys; print('diffusers.models.unets.unet_2d_condition' in sys.modules)\n"


@contextmanager
def preloading() -> Iterator[tuple[subprocess.Popen[str], dict[str, str]]]:
    """A command that `python -m fewstep.preload` runs, and its environment."""
    command = [*BEGIN, sys.executable, "-c", SAY]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        yield process, json.loads(process.stdout.readline())
        process.communicate("\n")


@pytest.fixture(scope="module")
def preloaded() -> Iterator[dict[str, str]]:
    """The environment of a command with a server beside it. The server's folder goes with the command."""
    with preloading() as (_, environment):
        yield environment
    programs = Path(environment["PATH"].partition(os.pathsep)[0])
    wait_for(lambda: not programs.exists())


def wait_for(condition: Callable[[], bool]) -> None:
    """Wait, for ten seconds at most, until a condition holds."""
    limit = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < limit
        time.sleep(0.02)


def usual(environment: dict[str, str]) -> dict[str, str]:
    """The same without the programs that ask the server."""
    return {**environment, "PATH": environment["PATH"].partition(os.pathsep)[2]}


def ran(folder: Path, environment: dict[str, str], *arguments: str, **how: Any) -> tuple[int, str, str]:
    """Exit status, stdout, and stderr of `python ARGUMENTS` in a folder, with this interpreter."""
    program = shutil.which("python", path=environment["PATH"])
    assert program is not None
    command = [program if "fewstep-preload" in program else sys.executable, *arguments]
    done = subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, check=False, **how
    )
    return done.returncode, done.stdout, done.stderr


def is_loaded(folder: Path, environment: dict[str, str], *options: str, **how: Any) -> bool:
    """Whether a script finds the libraries imported."""
    (folder / "loaded.py").write_text(LOADED)
    status, output, errors = ran(folder, environment, *options, "loaded.py", **how)
    assert status == 0, errors
    return output == "True\n"
