"""distill: train one few-step student, by the method that its params name."""

import sys
from pathlib import Path

from fewstep.config.base import read
from fewstep.config.sampling import SamplingConfig
from fewstep.config.triplets import read_shard_folders
from fewstep.core.paths import MODELS
from fewstep.core.stage import run
from fewstep.students.learn import Task, learn, method_module

NAME = sys.argv[1]


def main() -> None:
    """params.yaml `students.NAME` + its start model + triplets -> artifacts/models/NAME.

    Negative prompt and guidance interval are those of `sampling`.
    """
    method = read(str, "students", NAME, "method")
    config = read(method_module(method).Config, "students", NAME)
    shards, features = read_shard_folders(), read(Path, "features")
    sampling, seed = read(SamplingConfig, "sampling"), read(int, "seed")
    negative, interval = sampling.negative_prompt, sampling.guidance_interval
    learn(Task(f"distill@{NAME}", NAME, method, config, shards, seed, features, negative, interval))


if __name__ == "__main__":
    run(main, writes=MODELS / NAME, several=True)
