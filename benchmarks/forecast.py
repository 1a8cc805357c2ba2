"""Durations that `fewstep check` forecasts against those that the stages take.

    python benchmarks/forecast.py [--cpu] STAGE ...

Run it in a clone of the project whose earlier stages are done. STAGE: a name as in dvc.yaml, e.g.
`train_judge`, `generate_triplets@0`, `reflow@reflow`. Prints the forecast as JSON, then runs each stage's
script and prints a JSON object for it. --cpu: CPU time instead of wall-clock time, for a machine on which
other work runs (with OMP_NUM_THREADS=1).
"""

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable

from fewstep.chain import load_chain
from fewstep.checks.forecast import AROUND, forecast
from fewstep.checks.stopwatch import Stopwatch
from fewstep.checks.teacher import design

LEARNED = {"reflow": "", "halve": "halve-", "distill": ""}
"""Stage -> prefix of its key in the plan, which names these stages by their models."""


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser()
    parser.add_argument("stages", nargs="+")
    parser.add_argument("--cpu", action="store_true")
    parser.add_argument("--budget", type=float, default=30)
    chosen = parser.parse_args()
    clock: Callable[[], float] = cpu_seconds if chosen.cpu else time.perf_counter
    begun = clock()
    chain = load_chain()
    foreseen = forecast(chain, design(chain), Stopwatch(chosen.budget, clock))
    total = sum(value or 0 for value in foreseen.values())
    summary = {"forecast took": clock() - begun, "forecast of the chain": total}
    print(json.dumps(summary | {"stages": foreseen}, indent=2), flush=True)
    for stage in chosen.stages:
        expected = sum(
            (value or 0) for name, value in foreseen.items() if name.split(",")[0] == planned(stage)
        )
        begun = clock()
        name, _, key = stage.partition("@")
        subprocess.run([sys.executable, f"stages/{name}.py", *([key] if key else [])], check=True, stdout=2)
        taken = clock() - begun
        # This run does not include the overhead of DVC.
        expected -= AROUND
        row = {"forecast": expected, "taken": taken, "ratio": expected / taken}
        print(json.dumps({stage: row}), flush=True)


def planned(stage: str) -> str:
    """A stage's name in the plan, `train_teacher` for both of its rows."""
    name, _, key = stage.partition("@")
    return f"{LEARNED[name]}{key}" if name in LEARNED else stage


def cpu_seconds() -> float:
    """CPU seconds of this process and of the child processes that it waited for."""
    return sum(os.times()[:4])


if __name__ == "__main__":
    main()
