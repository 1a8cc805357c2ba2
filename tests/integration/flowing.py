"""Flows started as a person does, in a process of their own."""

import json
import os
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.began import PYTHON
from tests.integration.project import PATIENCE, Project
from tests.integration.server import Server

CODE = "import json, sys; from flows.chain import chain; chain(**json.loads(sys.argv[1]))"


@dataclass(frozen=True)
class Flow:
    """The process of a flow, and the file that takes its output and errors."""

    process: subprocess.Popen[bytes]
    log: Path

    def runs(self) -> bool:
        """Whether it has not ended."""
        return self.process.poll() is None


def start(
    project: Project,
    server: Server,
    environment: dict[str, str],
    code: str = CODE,
    program: str = PYTHON,
    **chosen: Any,
) -> Flow:
    """A flow with parameters, as `python -m flows.chain` starts it."""
    folder = project.folder.parent
    script = folder / f"{project.folder.name}-flow.py"
    script.write_text(code)
    ours = {"TMPDIR": str(folder), "PYTHONPATH": f"{project.folder / 'src'}{os.pathsep}{project.folder}"}
    with tempfile.NamedTemporaryFile(prefix="flow-", suffix=".log", dir=folder, delete=False) as log:
        process = subprocess.Popen(
            [program, script, json.dumps(chosen)],
            cwd=project.folder,
            env=project.environment(**server.environment, **ours, **environment),
            stdout=log,
            stderr=subprocess.STDOUT,
        )
    return Flow(process, Path(log.name))


def ended(flow: Flow) -> tuple[int, str]:
    """Status and output. A whole chain may take an hour on a busy host."""
    status = flow.process.wait(6 * PATIENCE)
    return status, flow.log.read_text()


def assert_ended(flow: Flow) -> str:
    """It must succeed. Returns its output."""
    status, output = ended(flow)
    assert status == 0, output
    return output


def flow(project: Project, server: Server, **chosen: Any) -> str:
    """The chain, which must succeed."""
    return assert_ended(start(project, server, {}, **chosen))
