"""reflow: straighten the start model's flow on the teacher's triplets."""

import sys

from fewstep.config.base import read
from fewstep.config.triplets import read_shard_folders
from fewstep.core.paths import MODELS
from fewstep.core.stage import run
from fewstep.methods.reflow import Config
from fewstep.students.learn import Task, learn

NAME = sys.argv[1]


def main() -> None:
    """params.yaml `reflow.NAME` + its start model + triplets -> artifacts/models/NAME."""
    config, shards = read(Config, "reflow", NAME), read_shard_folders()
    learn(Task(f"reflow@{NAME}", NAME, "reflow", config, shards, read(int, "seed")))


if __name__ == "__main__":
    run(main, writes=MODELS / NAME, several=True)
