"""A Prefect server to talk to: the one that is there, or a new one in the background.

PREFECT_API_URL=http://127.0.0.1:4200/api python -m flows.server
"""

import os
import subprocess
import sys
import time
from datetime import timedelta
from urllib.error import URLError
from urllib.parse import urlsplit
from urllib.request import urlopen

SECONDS = 60
"""How long a new one may take until it answers."""
MISSED = 3
"""Heartbeats that must be missing until a run is held for lost."""


def answers(url: str) -> bool:
    """Whether there is a server at this API address."""
    try:
        with urlopen(f"{url}/health", timeout=5) as answer:
            return bool(answer.status == 200)
    except (URLError, OSError):
        return False


def main() -> None:
    """Return once a server answers at PREFECT_API_URL and minds lost runs."""
    url = os.environ["PREFECT_API_URL"]
    if answers(url):
        print(f"there is a server at {url}")
    else:
        begin(url)
    mind_lost_runs()


def begin(url: str) -> None:
    """Start a server that outlives this process, and wait for it; `prefect server stop` ends it.

    Not by `prefect server start --background`: its server writes into pipes that nobody reads, and ends with
    the first line that it logs.
    """
    from prefect.settings import get_current_settings

    home = get_current_settings().home
    home.mkdir(parents=True, exist_ok=True)
    log, pid = home / "server.log", home / "server.pid"
    port = urlsplit(url).port
    with log.open("a") as out:
        server = subprocess.Popen(
            [sys.executable, "-m", "prefect", "server", "start", *(["--port", str(port)] if port else [])],
            env={"PREFECT_SERVER_ANALYTICS_ENABLED": "false", **os.environ},
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=out,
            start_new_session=True,  # Ctrl-C is for the worker.
        )
    pid.write_text(str(server.pid))
    limit = time.monotonic() + SECONDS
    while not answers(url):
        if server.poll() is not None or time.monotonic() > limit:
            server.terminate()
            pid.unlink()
            sys.exit(f"error: no server answers at {url}; {log} tells why")
        time.sleep(0.5)
    print(f"a server at {url}; it writes {log}")


def mind_lost_runs() -> None:
    """A run whose host is gone says no more: without heartbeats it has crashed."""
    # They read the server's address when they are imported.
    from prefect.automations import Automation
    from prefect.client.schemas.objects import StateType
    from prefect.events.actions import ChangeFlowRunState
    from prefect.events.schemas.automations import EventTrigger, Posture
    from prefect.events.schemas.events import ResourceSpecification
    from prefect.settings import get_current_settings

    if (between := get_current_settings().flows.heartbeat_frequency) is None:
        return
    name, beat = "lost runs have crashed", "prefect.flow-run.heartbeat"
    ends = {
        f"prefect.flow-run.{state}" for state in ("Completed", "Cached", "Failed", "Cancelled", "Crashed")
    }
    try:
        if Automation.read(name=name):
            return
    except ValueError:
        pass
    Automation(
        name=name,
        trigger=EventTrigger(
            after={beat},
            expect={beat, *ends},
            match=ResourceSpecification({"prefect.resource.id": ["prefect.flow-run.*"]}),
            for_each={"prefect.resource.id"},
            posture=Posture.Proactive,
            threshold=1,
            within=timedelta(seconds=MISSED * between),
        ),
        actions=[ChangeFlowRunState(state=StateType.CRASHED, message="no sign of life: its worker is lost")],
    ).create()


if __name__ == "__main__":
    main()
