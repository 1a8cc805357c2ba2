"""decoder: train a small autoencoder that decodes a model's latents as the teacher's decoder does."""

import sys

from fewstep.config.base import read
from fewstep.core.paths import MODELS
from fewstep.core.stage import run
from fewstep.methods.decoder import Config
from fewstep.students.learn import Task, learn

NAME = sys.argv[1]


def main() -> None:
    """params.yaml `decoder.NAME` + its start model + its data -> artifacts/models/NAME."""
    config, shards = read(Config, "decoder", NAME), read(list[int], "triplets", "shards")
    learn(Task(f"decoder@{NAME}", NAME, "decoder", config, shards, read(int, "seed")))


if __name__ == "__main__":
    run(main, writes=MODELS / NAME, several=True)
