"""reflow: straighten the start model's flow on the teacher's triplets."""

import sys

from fewstep.config.base import read
from fewstep.layout import MODELS
from fewstep.objectives.learn import learn
from fewstep.objectives.reflow import Config
from fewstep.stage import run

NAME = sys.argv[1]


def main() -> None:
    """params.yaml `reflow.NAME` + its start model + triplets -> artifacts/models/NAME."""
    shards = read(list[int], "triplets", "shards")
    learn(f"reflow@{NAME}", NAME, "reflow", read(Config, "reflow", NAME), shards, read(int, "seed"))


if __name__ == "__main__":
    run(main, writes=MODELS / NAME, several=True)
