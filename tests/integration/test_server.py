"""The server of `make ui`: begun once, outliving who began it, and minding lost runs."""

import os
import re
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest
from flows.probing import NothingThereError, version_of

from tests.integration.others import Reply, answering
from tests.integration.project import BIN, ROOT
from tests.integration.server import Server, free_port
from tests.integration.waiting import until

BEGIN = (sys.executable, "-m", "flows.server")


def run(
    server: Server, *command: str | Path, status: int = 0, environment: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """Run a command of the server's user, which must end with `status`."""
    everything = {**os.environ, "PREFECT_SERVER_LOGGING_LEVEL": "DEBUG", **server.environment}
    everything |= environment or {}
    done = subprocess.run(command, cwd=ROOT, env=everything, capture_output=True, text=True, check=False)
    assert done.returncode == status, done.stdout + done.stderr
    return done


def gone(server: Server) -> bool:
    """Whether nothing is there any more."""
    try:
        version_of(server.url)
    except NothingThereError:
        return True
    return False


def test_it_is_begun_once_outlives_its_beginning_and_can_be_stopped(tmp_path: Path) -> None:
    """Whatever proxy the environment names: nobody asks it for the loopback."""
    server, heard = Server(f"http://127.0.0.1:{free_port()}/api", tmp_path), list[str]()
    with answering(Reply(403), heard=heard) as port:
        names = [name for one in ("http_proxy", "all_proxy") for name in (one, one.upper())]
        proxies = dict.fromkeys(names, f"http://127.0.0.1:{port}") | {"no_proxy": "", "NO_PROXY": ""}
        try:
            assert f"a server at {server.url}" in run(server, *BEGIN, environment=proxies).stdout
            size = (tmp_path / "server.log").stat().st_size
            assert f"there is a server at {server.url}" in run(server, *BEGIN, environment=proxies).stdout
            assert (tmp_path / "server.log").stat().st_size > size  # its later output did not end it
            (automation,) = server.ask("automations/filter", {})
            assert automation["enabled"] and automation["actions"][0]["state"] == "CRASHED"
            moved = {"PREFECT_API_URL": f"http://127.0.0.1:{free_port()}/api"}
            assert "is at another port" in run(server, *BEGIN, status=1, environment=moved).stderr
        finally:
            run(server, BIN / "prefect", "server", "stop")
        assert heard == []
    until(lambda: gone(server))


@pytest.mark.parametrize(
    ("variable", "value", "message"),
    [
        (
            "PREFECT_API_DATABASE_CONNECTION_URL",
            "sqlite+aiosqlite:////nowhere/prefect.db",
            "the Prefect server did not start: .*OperationalError.* unable to open database file",
        ),
        ("PREFECT_SERVER_API_PORT", "many", r"settings of Prefect: ServerAPISettings\.port = 'many'"),
        ("PREFECT_HOME", "/proc/home", "PREFECT_HOME: cannot write /proc/home"),
    ],
)
def test_a_server_that_cannot_start_is_one_line_with_the_reason(
    variable: str, value: str, message: str, tmp_path: Path
) -> None:
    server = Server(f"http://127.0.0.1:{free_port()}/api", tmp_path)
    done = run(server, *BEGIN, status=1, environment={variable: value})
    assert re.match(f"error: {message}", done.stderr) and done.stderr.count("\n") == 1, done.stderr
    assert not (tmp_path / "server.pid").exists()
    assert ("server.log" in done.stderr) == (tmp_path / "server.log").exists()
