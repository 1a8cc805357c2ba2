"""A Prefect server to talk to: the one that is there, or a new one in the background.

PREFECT_API_URL=http://127.0.0.1:4200/api python -m flows.server
"""

import os
import subprocess
import sys
import time
from urllib.error import URLError
from urllib.request import urlopen

SECONDS = 60
"""How long a new one may take until it answers."""


def answers(url: str) -> bool:
    """Whether there is a server at this API address."""
    try:
        with urlopen(f"{url}/health", timeout=5) as answer:
            return bool(answer.status == 200)
    except (URLError, OSError):
        return False


def main() -> None:
    """Return once a server answers at PREFECT_API_URL."""
    url = os.environ["PREFECT_API_URL"]
    if answers(url):
        print(f"there is a server at {url}")
        return
    # One that was killed leaves its PID file, for which no other is started.
    subprocess.run(["prefect", "server", "stop"], capture_output=True, check=False)
    # A session of its own: Ctrl-C is for the worker.
    subprocess.run(["prefect", "server", "start", "--background"], check=True, start_new_session=True)
    limit = time.monotonic() + SECONDS
    while not answers(url):
        if time.monotonic() > limit:
            sys.exit(
                f"error: no server answers at {url} after {SECONDS} s; run `prefect server start` to see why"
            )
        time.sleep(0.5)


if __name__ == "__main__":
    main()
