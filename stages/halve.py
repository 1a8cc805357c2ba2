"""halve: one round of progressive halving."""

import sys

from fewstep.config.base import read
from fewstep.layout import MODELS
from fewstep.objectives.halve import Config
from fewstep.objectives.learn import learn
from fewstep.stage import run

ROUND = sys.argv[1]
NAME = f"halve-{ROUND}"


def main() -> None:
    """params.yaml `halve.ROUND` + its start model + triplets -> artifacts/models/halve-ROUND."""
    shards = read(list[int], "triplets", "shards")
    learn(f"halve@{ROUND}", NAME, "halve", read(Config, "halve", ROUND), shards, read(int, "seed"))


if __name__ == "__main__":
    run(main, writes=MODELS / NAME)
