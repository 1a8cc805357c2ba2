"""Flows started as a person does, in a process of their own."""

import json
import subprocess
import sys
from typing import Any

from tests.integration.project import Project
from tests.integration.server import Server

CODE = "import json, sys; from flows.chain import chain; chain(**json.loads(sys.argv[1]))"


Flow = subprocess.Popen[str]


def start(
    project: Project, server: Server, environment: dict[str, str], code: str = CODE, **chosen: Any
) -> Flow:
    """A flow with parameters, as `python -m flows.chain` starts it."""
    return subprocess.Popen(
        [sys.executable, "-c", code, json.dumps(chosen)],
        cwd=project.folder,
        env=project.environment(**server.environment, TMPDIR=str(project.folder.parent), **environment),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def ended(process: Flow) -> tuple[int, str]:
    """Status and output."""
    said, _ = process.communicate(timeout=1200)
    return process.returncode, said


def assert_ended(process: Flow) -> str:
    """It must succeed. Returns what it said."""
    status, said = ended(process)
    assert status == 0, said
    return said


def flow(project: Project, server: Server, **chosen: Any) -> str:
    """The chain, which must succeed."""
    return assert_ended(start(project, server, {}, **chosen))
