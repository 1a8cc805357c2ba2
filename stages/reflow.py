"""reflow: straighten the start model's flow on the teacher's triplets."""

from fewstep.config.base import read
from fewstep.layout import MODELS
from fewstep.objectives.learn import learn
from fewstep.objectives.reflow import Config
from fewstep.stage import run


def main() -> None:
    """params.yaml `reflow` + teacher + triplets -> artifacts/models/reflow."""
    shards = read(list[int], "triplets", "shards")
    learn("reflow", "reflow", "reflow", read(Config, "reflow"), shards, read(int, "seed"))


if __name__ == "__main__":
    run(main, writes=MODELS / "reflow")
