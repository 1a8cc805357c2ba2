"""Overhead of the flow over bare `dvc repro`, with a Prefect server that is already running.

    PREFECT_API_URL=http://127.0.0.1:4200/api python benchmarks/flow.py [--rounds 3]

Run it in a workspace whose chain is up to date. It times the whole chain, in which no stage runs, and the
task of a single stage that is forced to run (`prepare_data`). All measurements alternate. Prints JSON.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time

FORCED = 'from flows.chain import chain; chain(targets=["prepare_data"], force=True)'


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=3)
    rounds = parser.parse_args().rounds
    if "PREFECT_API_URL" not in os.environ:
        sys.exit("error: PREFECT_API_URL is not set; start a server with `prefect server start --background`")
    times: dict[str, list[float]] = {}
    for _ in range(rounds):
        for name, measured in {
            "cached chain, dvc repro": seconds("dvc", "repro"),
            "cached chain, flow": seconds(sys.executable, "-m", "flows.chain"),
            "prepare_data, dvc repro": seconds("dvc", "repro", "-f", "-s", "prepare_data"),
            "prepare_data, task": task_seconds(),
        }.items():
            times.setdefault(name, []).append(measured)
    medians = {name: statistics.median(values) for name, values in times.items()}
    print(json.dumps(medians, indent=2))


def seconds(*command: str) -> float:
    """Duration of a command."""
    begun = time.perf_counter()
    subprocess.run(command, check=True, capture_output=True)
    return time.perf_counter() - begun


def task_seconds() -> float:
    """Duration of the forced stage's task, as the server recorded it."""
    from prefect.client.orchestration import get_client
    from prefect.client.schemas.sorting import TaskRunSort

    seconds(sys.executable, "-c", FORCED)
    with get_client(sync_client=True) as client:
        (run,) = client.read_task_runs(sort=TaskRunSort.END_TIME_DESC, limit=1)
    return run.total_run_time.total_seconds()


if __name__ == "__main__":
    main()
