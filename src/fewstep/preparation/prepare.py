"""The whole of `prepare_data`: units of the source -> parts -> shards of the data set."""

import tempfile
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from importlib import import_module
from pathlib import Path
from types import ModuleType

from fewstep.artifacts.workspace import Workspace
from fewstep.config.data import DataConfig
from fewstep.core.errors import UserError
from fewstep.core.files import PARTIAL, link_or_copy, whole_folder, write_json
from fewstep.core.pool import Pool, workers
from fewstep.data.shards import INDEX, SPLITS, Index, Shard
from fewstep.preparation.assemble import write
from fewstep.preparation.parts import Task, make
from fewstep.preparation.plan import Plan
from fewstep.preparation.quarantine import QUARANTINE, SKIPPED, Listing, check
from fewstep.preparation.statistics import Statistics, values_of

STATISTICS = "statistics.json"


def prepare(
    config: DataConfig,
    seed: int,
    out: Path,
    progress: Callable[[int], None] = lambda samples: None,
    work: Workspace | None = None,
) -> Statistics:
    """Make the data set `out`: shards, index.json, statistics.json, quarantine.jsonl, skipped.jsonl.

    The same config, seed and source give the same bytes, for any number of workers (FEWSTEP_WORKERS) and
    after any interruption. work: keeps finished parts and shards until all are finished; None: nothing
    survives an interruption. `progress` is called with the number of samples prepared so far, part by part.

    After `config.count` samples one more is read, to report whether there are more. Returns the statistics
    that statistics.json holds.

    Raises UserError when the source has nothing to read, too much of it is unreadable, or a split
    would be empty; `out` is then left as it was.
    """
    source = import_module(f"fewstep.sources.{config.source}")
    with folder_of(work, out) as folder, whole_folder(out) as staging, Pool(workers()) as pool:
        parts = make_parts(pool, source, config, seed, folder, progress)
        with Listing(staging / QUARANTINE) as quarantine, Listing(staging / SKIPPED) as skipped:
            plan = Plan(config, folder, quarantine, skipped)
            shards = {split: list[Shard]() for split in SPLITS}
            for split in SPLITS:
                (staging / split).mkdir()
            for shard in pool.each(write, plan.shards(parts), lambda planned: planned.name):
                link_or_copy(shard.file, staging / shard.name)
                entry = Shard(shard=shard.name, samples=shard.samples, sha256=shard.sha256)
                shards[Path(shard.name).parent.name].append(entry)
        statistics = plan.statistics
        if not statistics.cut:
            plan.census.check(config.path, source.expected(config))
        check(quarantine, statistics.samples, config.filters.max_quarantined_share)
        demand_both_splits(config, statistics)
        index = Index(
            resolution=config.resolution,
            labels=values_of(statistics.labels),
            hidden=values_of(statistics.hidden),
            splits={split: tuple(each) for split, each in shards.items()},
        )
        write_json(staging / INDEX, index.model_dump(mode="json", exclude={"resumed"}) | resumed(work))
        write_json(staging / STATISTICS, statistics.summary())
    return statistics


@contextmanager
def folder_of(work: Workspace | None, out: Path) -> Iterator[Path]:
    """The folder of unfinished work; a temporary one beside `out` where none is to be kept."""
    if work is not None:
        for partial in work.folder.glob(f".*{PARTIAL}"):
            partial.unlink(missing_ok=True)
        yield work.folder
        return
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=f".{out.name}.") as folder:
        yield Path(folder)


def make_parts(
    pool: Pool,
    source: ModuleType,
    config: DataConfig,
    seed: int,
    folder: Path,
    progress: Callable[[int], None],
) -> list[Path]:
    """The files of all parts that `config.count` samples need, in order."""
    parts: list[Path] = []
    samples = 0
    planned = tasks(source, config, seed, folder)
    with closing(pool.each(make, planned, lambda task: f"data: {task.unit.name}")) as made:
        for part in made:
            parts.append(part.file)
            samples += part.samples
            progress(samples if config.count is None else min(samples, config.count))
            if config.count is not None and samples > config.count:
                break
    return parts


def tasks(source: ModuleType, config: DataConfig, seed: int, folder: Path) -> Iterator[Task]:
    """The parts to be made, in order; as many as `config.count` samples need, as far as that is known."""
    needed = None if config.count is None else config.count + 1
    for number, unit in enumerate(source.units(config, seed)):
        complete = needed is None or (unit.samples is not None and unit.samples <= needed)
        yield Task(number, unit, config, seed, folder, None if complete else needed)
        if needed is not None and unit.samples is not None:
            needed -= unit.samples
            if needed <= 0:
                return


def resumed(work: Workspace | None) -> dict[str, object]:
    """For the index: the differences despite which work was resumed, if any."""
    return work.metadata if work is not None else {}


def demand_both_splits(config: DataConfig, statistics: Statistics) -> None:
    """Raises UserError when nothing is left to train on, or to hold out."""
    for split in SPLITS:
        if not statistics.splits[split]:
            why = ", ".join(f"{count} {reason}" for reason, count in statistics.rejected.items())
            raise UserError(
                f"data: of {statistics.samples} samples {statistics.splits.total()} are kept "
                f"(rejected: {why or 'none'}) and none of them falls on the {split} side; give more data, "
                f"loosen data.filters or change data.heldout = {config.heldout}"
            )
