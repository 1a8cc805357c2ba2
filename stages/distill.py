"""distill: one few-step student, by the method its params name."""

import sys
from pathlib import Path

from fewstep.config.base import read
from fewstep.layout import MODELS
from fewstep.objectives.learn import learn, objective_module
from fewstep.stage import run

NAME = sys.argv[1]


def main() -> None:
    """params.yaml `students.NAME` + its start model + triplets -> artifacts/models/NAME."""
    method = read(str, "students", NAME, "method")
    config = read(objective_module(method).Config, "students", NAME)
    shards, features = read(list[int], "triplets", "shards"), read(Path, "features")
    learn(f"distill@{NAME}", NAME, method, config, shards, read(int, "seed"), features)


if __name__ == "__main__":
    run(main, writes=MODELS / NAME, several=True)
