"""halve: one round of progressive halving."""

import sys

from fewstep.config.base import read
from fewstep.config.sampling import SamplingConfig
from fewstep.config.triplets import read_shard_folders
from fewstep.core.paths import MODELS
from fewstep.core.stage import run
from fewstep.methods.halve import Config
from fewstep.students.learn import Task, learn

ROUND = sys.argv[1]
NAME = f"halve-{ROUND}"


def main() -> None:
    """params.yaml `halve.ROUND` + its start model + its data -> artifacts/models/halve-ROUND.

    Negative prompt and guidance interval are those of `sampling`.
    """
    config, shards = read(Config, "halve", ROUND), read_shard_folders()
    sampling, seed = read(SamplingConfig, "sampling"), read(int, "seed")
    negative, interval = sampling.negative_prompt, sampling.guidance_interval
    learn(Task(f"halve@{ROUND}", NAME, "halve", config, shards, seed, None, negative, interval))


if __name__ == "__main__":
    run(main, writes=MODELS / NAME, several=True)
