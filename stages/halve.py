"""halve: one round of progressive halving."""

import sys

from fewstep.config.base import read
from fewstep.config.sampling import SamplingConfig
from fewstep.layout import ENCODED, MODELS
from fewstep.objectives.halve import Config
from fewstep.objectives.learn import learn
from fewstep.stage import run

ROUND = sys.argv[1]
NAME = f"halve-{ROUND}"


def main() -> None:
    """params.yaml `halve.ROUND` + its start model + its data -> artifacts/models/halve-ROUND.

    The negative prompt is the one of `sampling`.
    """
    config, shards = read(Config, "halve", ROUND), read(list[int], "triplets", "shards")
    encoded = ENCODED / "train" if config.data == "encoded" else None
    negative = read(SamplingConfig, "sampling").negative_prompt
    seed = read(int, "seed")
    learn(f"halve@{ROUND}", NAME, "halve", config, shards, seed, encoded=encoded, negative_prompt=negative)


if __name__ == "__main__":
    run(main, writes=MODELS / NAME, several=True)
