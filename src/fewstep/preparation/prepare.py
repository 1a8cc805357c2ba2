"""The whole of `prepare_data`: one pass from the source to the split shards."""

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path

from fewstep.config.data import DataConfig
from fewstep.core.errors import UserError
from fewstep.core.files import whole_folder, write_json
from fewstep.core.text import normalised
from fewstep.data.shards import INDEX, SPLITS, Index, Record
from fewstep.preparation.filters import Duplicates, aesthetic_fault, caption_fault, size_fault
from fewstep.preparation.images import BadImage, decode, encode, fit
from fewstep.preparation.quarantine import QUARANTINE, SKIPPED, Listing, check
from fewstep.preparation.shard_writer import ShardWriter
from fewstep.preparation.split import digest_of, split_of
from fewstep.preparation.statistics import Statistics, values_of
from fewstep.sources.sample import NO_CAPTION, Sample, Skipped, Unreadable

STATISTICS = "statistics.json"
DUPLICATE = "duplicate"


@dataclass(frozen=True)
class Rejected:
    """A readable sample that a filter refused."""

    reason: str


@dataclass(frozen=True)
class Prepared:
    """A sample as it goes into a shard.

    key: hash of the pixels; for further captions of the same pixels, `-1`, `-2` ... is appended.
    size: (width, height) of the original.
    """

    key: str
    split: str
    png: bytes
    record: Record
    size: tuple[int, int]


def prepare(
    config: DataConfig, seed: int, out: Path, progress: Callable[[int], None] = lambda samples: None
) -> Statistics:
    """Make the data set `out`: shards, index.json, statistics.json, quarantine.jsonl, skipped.jsonl.

    The same config, seed and source give the same bytes. Samples are streamed: memory holds one of
    them, the hashes of those before (see Duplicates) and one line per shard. After `config.count` samples
    one more is read, to report whether there are more. `progress` is called with the number of samples read
    so far. Returns the statistics that statistics.json holds.

    Raises UserError when the source has nothing to read, too much of it is unreadable, or a split
    would be empty; `out` is then left as it was.
    """
    source = import_module(f"fewstep.sources.{config.source}")
    statistics, duplicates = Statistics(), Duplicates()
    with whole_folder(out) as folder:
        with ExitStack() as stack:
            quarantine = stack.enter_context(Listing(folder / QUARANTINE))
            skipped = stack.enter_context(Listing(folder / SKIPPED))
            statistics.quarantined, statistics.skipped = quarantine.reasons, skipped.reasons
            writers = {
                split: stack.enter_context(ShardWriter(folder, split, config.shard_size)) for split in SPLITS
            }
            for entry in source.samples(config, seed):
                if isinstance(entry, Skipped):
                    skipped.add(entry)
                    continue
                if statistics.samples == config.count:
                    statistics.cut = True
                    break
                match examine(entry, config, duplicates):
                    case Unreadable() as outcome:
                        quarantine.add(outcome)
                    case Rejected(reason):
                        statistics.rejected[reason] += 1
                    case Prepared() as outcome:
                        writers[outcome.split].write(outcome.key, outcome.png, outcome.record)
                        statistics.keep(outcome.split, outcome.record, outcome.size)
                statistics.samples += 1
                progress(statistics.samples)
        check(quarantine, statistics.samples, config.filters.max_quarantined_share)
        demand_both_splits(config, statistics)
        index = Index(
            resolution=config.resolution,
            labels=values_of(statistics.labels),
            hidden=values_of(statistics.hidden),
            splits={split: tuple(writer.shards) for split, writer in writers.items()},
        )
        write_json(folder / INDEX, index.model_dump(mode="json"))
        write_json(folder / STATISTICS, statistics.summary())
    return statistics


def examine(
    entry: Sample | Unreadable, config: DataConfig, duplicates: Duplicates
) -> Prepared | Rejected | Unreadable:
    """Prepare, reject or quarantine one sample, by the first fault found; the cheapest checks come first."""
    if isinstance(entry, Unreadable):
        return entry
    if entry.caption is None:
        return Unreadable(entry.name, NO_CAPTION)
    caption = normalised(entry.caption)
    fault = caption_fault(caption, config.filters) or aesthetic_fault(entry.aesthetic_score, config.filters)
    if fault:
        return Rejected(fault)
    try:
        original = decode(entry.image)
    except BadImage as error:
        return Unreadable(entry.name, error.reason, error.detail)
    if fault := size_fault(original.size, config.filters):
        return Rejected(fault)
    image = fit(original, config.resolution)
    digest = digest_of(image.tobytes())
    ordinal = duplicates.ordinal(digest, caption)
    if ordinal is None:
        return Rejected(DUPLICATE)
    decisive = digest if config.split_by == "image" else digest_of(caption.encode())
    return Prepared(
        key=f"{digest.hex()}-{ordinal}" if ordinal else digest.hex(),
        split=split_of(decisive, config.heldout),
        png=encode(image),
        record=Record(
            caption=caption,
            labels=entry.labels,
            hidden=entry.hidden,
            aesthetic_score=entry.aesthetic_score,
        ),
        size=original.size,
    )


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
