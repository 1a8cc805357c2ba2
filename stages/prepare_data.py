"""prepare_data: a source's images and captions, checked, resized, split, written as shards."""

from importlib import import_module

from fewstep.artifacts.workspace import Workspace
from fewstep.config.base import read
from fewstep.config.data import DataConfig
from fewstep.core.paths import DATA
from fewstep.core.progress import progress
from fewstep.core.stage import run
from fewstep.preparation.parts import LATER
from fewstep.preparation.prepare import prepare


def main() -> None:
    """params.yaml `data` -> artifacts/data."""
    config, seed = read(DataConfig, "data"), read(int, "seed")
    import_module(f"fewstep.sources.{config.source}")  # the fingerprint covers modules that are loaded
    params = {"seed": seed, "data": config.model_dump(mode="json", exclude=LATER)}
    work = Workspace("prepare_data", params, {})
    with progress("prepare_data", config.count) as report:
        outcome = prepare(config, seed, DATA, report, work)
    work.finish()
    print(f"prepare_data: {outcome}", flush=True)


if __name__ == "__main__":
    run(main, writes=DATA)
