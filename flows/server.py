"""Makes sure that a Prefect server answers: uses the existing one, or starts one in the background.

PREFECT_API_URL=http://127.0.0.1:4200/api python -m flows.server
"""

import os
import sys
import warnings
from contextlib import redirect_stderr
from datetime import timedelta
from io import StringIO

from packaging.version import Version
from pydantic import ValidationError

from fewstep.config.base import describe
from fewstep.core.errors import UserError
from flows.addresses import api_address, avoid_proxies_on_loopback, next_port, shown

MISSED = 3
"""Number of missing heartbeats after which a run counts as lost."""


def main() -> None:
    """Return once a server answers at PREFECT_API_URL and detects lost runs.

    Exit status 1, with a one-line error, when none answers and none can be started.
    """
    try:
        avoid_proxies_on_loopback()
        url = api_address(os.environ.get("PREFECT_API_URL", ""))
        require_settings()
        print(there(url))
        mind_lost_runs(url)
    except UserError as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit(130)


def require_settings() -> None:
    """Read Prefect's settings. Raises UserError with what is wrong in them."""
    try:
        # Its printed warnings are dropped: the same problems are raised here, or by `begin`.
        with warnings.catch_warnings(action="ignore"), redirect_stderr(StringIO()):
            from prefect.settings import get_current_settings

            get_current_settings()
    except ValidationError as error:
        raise UserError(f"settings of Prefect: {'; '.join(describe(error, error.title))}") from None
    except (OSError, ValueError) as error:
        raise UserError(f"settings of Prefect: {error}") from None


def there(url: str) -> str:
    """Find the server, or start one. Returns a line about it for the user.

    Raises UserError when none can be used or started.
    """
    # These modules read Prefect's settings when they are imported.
    from prefect import __version__

    from flows.background import begin
    from flows.probing import NothingThereError, version_of

    try:
        version = version_of(url)
    except NothingThereError as error:
        return f"started a server at {shown(url)}; its log: {begin(url, str(error))}"
    ours = Version(__version__)
    if version.major != ours.major:
        raise UserError(
            f"the server at {shown(url)} is Prefect {version}, this environment has {ours}: use one version, "
            f"or another port, PREFECT_API_URL={next_port(url)}"
        )
    older = f"; it is Prefect {version}, older than {ours} here: please update it" if version < ours else ""
    return f"there is a server at {shown(url)}{older}"


def mind_lost_runs(url: str) -> None:
    """Create an automation that marks runs without heartbeats, whose host is lost, as crashed.

    Raises UserError with the server's error when it does not accept the automation.
    """
    # These modules read the server's address when they are imported.
    from httpx import HTTPError
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
    automation = Automation(
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
        actions=[ChangeFlowRunState(state=StateType.CRASHED, message="no heartbeat: its worker is lost")],
    )
    try:
        if not exists(name):
            automation.create()
    except (HTTPError, RuntimeError) as error:
        words = str(error).splitlines()[0]
        raise UserError(
            f"the server at {shown(url)} does not accept the automation {name!r}: {words}"
        ) from None


def exists(automation: str) -> bool:
    """Whether the server has an automation of this name."""
    from prefect.automations import Automation

    try:
        return bool(Automation.read(name=automation))
    except ValueError:
        return False


if __name__ == "__main__":
    main()
