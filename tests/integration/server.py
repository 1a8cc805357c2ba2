"""A real Prefect server, asked over its REST interface."""

import json
import os
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.integration.project import PATIENCE

BIN = Path(sys.executable).parent
QUIET = {"DO_NOT_TRACK": "1", "PREFECT_SERVER_ANALYTICS_ENABLED": "false", "PREFECT_LOGGING_COLORS": "false"}


class Server:
    """What runs at `url`."""

    def __init__(self, url: str, home: Path) -> None:
        self.url, self.home = url, home

    @property
    def environment(self) -> dict[str, str]:
        """For a process whose flows are to be seen here."""
        return {**QUIET, "PREFECT_API_URL": self.url, "PREFECT_HOME": str(self.home)}

    def ask(self, path: str, body: dict[str, Any] | None = None) -> Any:
        """The answer to a POST, or without a body to a GET."""
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(f"{self.url}/{path}", data, {"Content-Type": "application/json"})
        with urllib.request.urlopen(request, timeout=PATIENCE) as answer:
            return json.load(answer)

    def last_flow(self, name: str | None = None) -> dict[str, Any]:
        """The newest flow run; name: of its flow."""
        return self.last_flows(1, name)[0]

    def last_flows(self, count: int, name: str | None = None) -> list[dict[str, Any]]:
        """The newest flow runs, the last one first; name: of their flow."""
        asked: dict[str, Any] = {"sort": "START_TIME_DESC", "limit": count}
        if name is not None:
            asked["flows"] = {"name": {"any_": [name]}}
        flows: list[dict[str, Any]] = self.ask("flow_runs/filter", asked)
        return flows

    def tasks(self, name: str | None = None) -> dict[str, str]:
        """Task -> name of its state, of the newest flow run."""
        one = {"flow_runs": {"id": {"any_": [self.last_flow(name)["id"]]}}}
        return {run["name"]: run["state_name"] for run in self.ask("task_runs/filter", one)}

    def running(self, name: str) -> list[str]:
        """The flow runs of this name that are at work."""
        asked = {"flow_runs": {"name": {"any_": [name]}, "state": {"type": {"any_": ["RUNNING"]}}}}
        return [run["id"] for run in self.ask("flow_runs/filter", asked)]

    def artifacts(self) -> dict[str, Any]:
        """Key -> artifact, of the newest flow run."""
        one = {"artifacts": {"flow_run_id": {"any_": [self.last_flow()["id"]]}}}
        return {artifact["key"]: artifact for artifact in self.ask("artifacts/filter", one)}


def answers(server: Server) -> bool:
    """Whether it can be asked already."""
    try:
        server.ask("health")
    except OSError:
        return False
    return True


def free_port() -> int:
    """Of the loopback."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port: int = free.getsockname()[1]
        return port


@contextmanager
def serving(home: Path) -> Iterator[Server]:
    """Start a server on a free port of the loopback, its data in `home`."""
    port = free_port()
    server = Server(f"http://127.0.0.1:{port}/api", home)
    with (home / "server.log").open("w") as log:
        process = subprocess.Popen(
            [BIN / "prefect", "server", "start", "--host", "127.0.0.1", "--port", str(port)],
            env={**os.environ, **QUIET, "PREFECT_HOME": str(home)},
            stdout=log,
            stderr=subprocess.STDOUT,
        )
        try:
            limit = time.monotonic() + PATIENCE
            while not answers(server):
                output = (home / "server.log").read_text()
                assert process.poll() is None and time.monotonic() < limit, output
                time.sleep(0.25)
            yield server
        finally:
            process.terminate()
            process.wait(PATIENCE)
