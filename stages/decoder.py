"""decoder: train or load a small autoencoder that decodes a model's latents as the teacher's decoder does."""

import sys
from pathlib import Path

from fewstep.config.base import read
from fewstep.config.triplets import read_shard_folders
from fewstep.core.paths import MODELS
from fewstep.core.stage import run
from fewstep.methods.decoder import Config
from fewstep.students.decoder import add_decoder
from fewstep.students.learn import Task, learn

NAME = sys.argv[1]


def main() -> None:
    """params.yaml `decoder.NAME` + its start model + its data, or `load` -> artifacts/models/NAME."""
    config, shards = read(Config, "decoder", NAME), read_shard_folders()
    if config.load is not None:
        add_decoder(NAME, config.from_, Path(config.load))
    else:
        learn(Task(f"decoder@{NAME}", NAME, "decoder", config, shards, read(int, "seed")))


if __name__ == "__main__":
    run(main, writes=MODELS / NAME, several=True)
