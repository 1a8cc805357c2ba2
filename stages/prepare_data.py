"""prepare_data: a source's images and captions, checked, resized, split, written as shards."""

from fewstep.config.base import read
from fewstep.config.data import DataConfig
from fewstep.core.paths import DATA
from fewstep.core.progress import progress
from fewstep.core.stage import run
from fewstep.preparation.prepare import prepare


def main() -> None:
    """params.yaml `data` -> artifacts/data."""
    config = read(DataConfig, "data")
    with progress("prepare_data", config.count) as report:
        outcome = prepare(config, read(int, "seed"), DATA, report)
    print(f"prepare_data: {outcome}", flush=True)


if __name__ == "__main__":
    run(main, writes=DATA)
