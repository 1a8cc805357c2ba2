"""What `fewstep check` forecasts against what stages then take.

    python benchmarks/forecast.py [--cpu] STAGE ...

In a clone of the project whose earlier stages are done; STAGE as dvc.yaml has it, e.g. `train_judge`,
`generate_triplets@0`, `reflow@reflow`. Forecasts, runs each script, prints one JSON object. --cpu: seconds of
computing instead of the clock's, for a machine on which other work runs (with OMP_NUM_THREADS=1).
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
"""Stage -> what stands before its key in the plan, which names these by their models."""


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser()
    parser.add_argument("stages", nargs="+")
    parser.add_argument("--cpu", action="store_true")
    parser.add_argument("--budget", type=float, default=30)
    chosen = parser.parse_args()
    clock: Callable[[], float] = autocast if chosen.cpu else time.perf_counter
    begun = clock()
    chain = load_chain()
    foreseen = forecast(chain, design(chain), Stopwatch(chosen.budget, clock))
    total = sum(value or 0 for value in foreseen.values())
    found = {"forecast took": clock() - begun, "forecast of the chain": total}
    print(json.dumps(found | {"stages": foreseen}, indent=2), flush=True)
    for stage in chosen.stages:
        expected = sum(
            (value or 0) for name, value in foreseen.items() if name.split(",")[0] == planned(stage)
        )
        begun = clock()
        name, _, key = stage.partition("@")
        subprocess.run([sys.executable, f"stages/{name}.py", *([key] if key else [])], check=True, stdout=2)
        taken = clock() - begun
        # DVC is not part of this run.
        expected -= AROUND
        row = {"forecast": expected, "taken": taken, "ratio": expected / taken}
        print(json.dumps({stage: row}), flush=True)


def planned(stage: str) -> str:
    """A stage's name in the plan, `train_teacher` for both of its rows."""
    name, _, key = stage.partition("@")
    return f"{LEARNED[name]}{key}" if name in LEARNED else stage


def autocast() -> float:
    """Seconds of computing of this process and those that it waited for."""
    return sum(os.times()[:4])


if __name__ == "__main__":
    main()
