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
        with urllib.request.urlopen(request, timeout=10) as answer:
            return json.load(answer)

    def last_flow(self, name: str | None = None) -> dict[str, Any]:
        """The newest flow run; name: of its flow."""
        asked: dict[str, Any] = {"sort": "START_TIME_DESC", "limit": 1}
        if name is not None:
            asked["flows"] = {"name": {"any_": [name]}}
        found: list[dict[str, Any]] = self.ask("flow_runs/filter", asked)
        return found[0]

    def tasks(self, name: str | None = None) -> dict[str, str]:
        """Task -> name of its state, of the newest flow run."""
        one = {"flow_runs": {"id": {"any_": [self.last_flow(name)["id"]]}}}
        return {run["name"]: run["state_name"] for run in self.ask("task_runs/filter", one)}

    def running(self, name: str) -> list[str]:
        """Runs of the flow `name` that are at work."""
        asked = {"flows": {"name": {"any_": [name]}}, "flow_runs": {"state": {"type": {"any_": ["RUNNING"]}}}}
        return [run["id"] for run in self.ask("flow_runs/filter", asked)]

    def artifacts(self) -> dict[str, Any]:
        """Key -> artifact, of the newest flow run."""
        one = {"artifacts": {"flow_run_id": {"any_": [self.last_flow()["id"]]}}}
        return {found["key"]: found for found in self.ask("artifacts/filter", one)}


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
            for _ in range(240):
                assert process.poll() is None, (home / "server.log").read_text()
                try:
                    server.ask("health")
                    break
                except OSError:
                    time.sleep(0.25)
            yield server
        finally:
            process.terminate()
            process.wait(30)
