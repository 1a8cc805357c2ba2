"""The server of `make ui`: begun once, outliving who began it, and minding lost runs."""

import os
import subprocess
import sys
import time
from pathlib import Path

from flows.server import answers

from tests.integration.project import BIN, ROOT
from tests.integration.server import Server, free_port


def run(server: Server, *command: str | Path) -> str:
    """Run a command of the server's user; returns what it printed."""
    talkative = {"PREFECT_SERVER_LOGGING_LEVEL": "DEBUG"}
    environment = {**os.environ, **server.environment, **talkative}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_it_is_begun_once_outlives_its_beginning_and_can_be_stopped(tmp_path: Path) -> None:
    server = Server(f"http://127.0.0.1:{free_port()}/api", tmp_path)
    begin = (sys.executable, "-m", "flows.server")
    try:
        assert f"a server at {server.url}" in run(server, *begin)
        size = (tmp_path / "server.log").stat().st_size
        assert f"there is a server at {server.url}" in run(server, *begin)
        assert (tmp_path / "server.log").stat().st_size > size  # what it has said meanwhile did not end it
        (automation,) = server.ask("automations/filter", {})
        assert automation["enabled"] and automation["actions"][0]["state"] == "CRASHED"
    finally:
        run(server, BIN / "prefect", "server", "stop")
    limit = time.monotonic() + 30
    while answers(server.url):
        assert time.monotonic() < limit
        time.sleep(0.25)


def test_a_server_that_cannot_start_is_told_with_its_log(tmp_path: Path) -> None:
    database = {"PREFECT_API_DATABASE_CONNECTION_URL": f"sqlite+aiosqlite:///{tmp_path}/none/prefect.db"}
    server = Server(f"http://127.0.0.1:{free_port()}/api", tmp_path)
    done = subprocess.run(
        (sys.executable, "-m", "flows.server"),
        cwd=ROOT,
        env={**os.environ, **server.environment, **database},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1 and f"no server answers at {server.url}" in done.stderr, done.stderr
    assert str(tmp_path / "server.log") in done.stderr
    assert not (tmp_path / "server.pid").exists()
