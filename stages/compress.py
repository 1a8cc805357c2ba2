"""compress: train a smaller network from a model of the chain."""

import sys

from fewstep.config.base import read
from fewstep.config.triplets import read_shard_folders
from fewstep.core.paths import MODELS
from fewstep.core.stage import run
from fewstep.core.text import normalised
from fewstep.methods.compress import Config
from fewstep.students.learn import Task, learn

NAME = sys.argv[1]


def main() -> None:
    """params.yaml `compress.NAME` + its start model + its data -> artifacts/models/NAME.

    The negative prompt is the one of `sampling`.
    """
    config, shards = read(Config, "compress", NAME), read_shard_folders()
    negative = normalised(read(str, "sampling", "negative_prompt"))
    seed = read(int, "seed")
    learn(Task(f"compress@{NAME}", NAME, "compress", config, shards, seed, negative_prompt=negative))


if __name__ == "__main__":
    run(main, writes=MODELS / NAME, several=True)
