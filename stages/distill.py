"""distill: train one few-step student, by the method that its params name."""

import sys
from pathlib import Path

from fewstep.config.base import read
from fewstep.config.triplets import read_shard_folders
from fewstep.core.paths import MODELS
from fewstep.core.stage import run
from fewstep.core.text import normalised
from fewstep.students.learn import Task, learn, method_module

NAME = sys.argv[1]


def main() -> None:
    """params.yaml `students.NAME` + its start model + triplets -> artifacts/models/NAME.

    The negative prompt is the one of `sampling`.
    """
    method = read(str, "students", NAME, "method")
    config = read(method_module(method).Config, "students", NAME)
    shards, features = read_shard_folders(), read(Path, "features")
    negative, seed = normalised(read(str, "sampling", "negative_prompt")), read(int, "seed")
    learn(Task(f"distill@{NAME}", NAME, method, config, shards, seed, features, negative))


if __name__ == "__main__":
    run(main, writes=MODELS / NAME, several=True)
