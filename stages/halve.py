"""halve: one round of progressive halving."""

import sys

from fewstep.config.base import read
from fewstep.config.triplets import read_shard_folders
from fewstep.core.paths import MODELS
from fewstep.core.stage import run
from fewstep.core.text import normalised
from fewstep.methods.halve import Config
from fewstep.students.learn import Task, learn

ROUND = sys.argv[1]
NAME = f"halve-{ROUND}"


def main() -> None:
    """params.yaml `halve.ROUND` + its start model + its data -> artifacts/models/halve-ROUND.

    The negative prompt is the one of `sampling`.
    """
    config, shards = read(Config, "halve", ROUND), read_shard_folders()
    negative = normalised(read(str, "sampling", "negative_prompt"))
    seed = read(int, "seed")
    learn(Task(f"halve@{ROUND}", NAME, "halve", config, shards, seed, negative_prompt=negative))


if __name__ == "__main__":
    run(main, writes=MODELS / NAME, several=True)
