"""Decides about all samples together: duplicates, and the split and shard of each of the others."""

from collections.abc import Iterable, Iterator
from pathlib import Path

from fewstep.config.data import DataConfig
from fewstep.data.shards import SPLITS
from fewstep.preparation.assemble import Member, PlannedShard
from fewstep.preparation.examine import Rejected
from fewstep.preparation.filters import Duplicates
from fewstep.preparation.parts import Kept, outcomes
from fewstep.preparation.quarantine import Listing
from fewstep.preparation.split import digest_of, split_of
from fewstep.preparation.statistics import Statistics
from fewstep.sources.sample import Census, Skipped, Unreadable

DUPLICATE = "duplicate"


class Plan:
    """The shards of a data set, from its parts in their order; no image is read.

    Memory: the hashes of all images (see Duplicates) and one open shard of each split, without its images.
    """

    def __init__(self, config: DataConfig, folder: Path, quarantine: Listing, skipped: Listing) -> None:
        """folder: of unfinished work. quarantine, skipped: the lists that are filled."""
        self.statistics = Statistics(quarantined=quarantine.reasons, skipped=skipped.reasons)
        self.census = Census()
        """Of the entries, whether they became samples or not."""
        self._config, self._folder = config, folder
        self._quarantine, self._skipped = quarantine, skipped
        self._duplicates = Duplicates()
        self._open: dict[str, list[Member]] = {split: [] for split in SPLITS}
        self._full = dict.fromkeys(SPLITS, 0)

    def shards(self, parts: Iterable[Path]) -> Iterator[PlannedShard]:
        """The shards, each as soon as its last sample is known. `data.count` samples are used."""
        for part in parts:
            for outcome, captioned in outcomes(part):
                if isinstance(outcome, Skipped):
                    self._skipped.add(outcome)
                    self.census.add(outcome)
                    continue
                if self.statistics.samples == self._config.count:
                    self.statistics.cut = True
                    yield from self._rest()
                    return
                self.statistics.samples += 1
                if captioned:
                    self.census.add_captioned()
                match outcome:
                    case Unreadable():
                        self._quarantine.add(outcome)
                        if not captioned:
                            self.census.add(outcome)
                    case Rejected(reason):
                        self.statistics.rejected[reason] += 1
                    case Kept():
                        yield from self._keep(part, outcome)
        yield from self._rest()

    def _keep(self, part: Path, sample: Kept) -> Iterator[PlannedShard]:
        """Add a sample to the open shard of its split, unless it is a duplicate."""
        caption = sample.record.caption
        ordinal = self._duplicates.ordinal(sample.digest, caption)
        if ordinal is None:
            self.statistics.rejected[DUPLICATE] += 1
            return
        name = sample.digest.hex()
        decisive = sample.digest if self._config.split_by == "image" else digest_of(caption.encode())
        split = split_of(decisive, self._config.heldout)
        self.statistics.keep(split, sample.record, sample.size)
        key = f"{name}-{ordinal}" if ordinal else name
        self._open[split].append(Member(key, sample.record.json_bytes(), part, sample.number))
        if len(self._open[split]) == self._config.shard_size:
            yield self._close(split)

    def _rest(self) -> Iterator[PlannedShard]:
        """The last shard of each split."""
        for split in SPLITS:
            if self._open[split]:
                yield self._close(split)

    def _close(self, split: str) -> PlannedShard:
        members, self._open[split] = tuple(self._open[split]), []
        name = f"{split}/{self._full[split]:05d}.tar"
        self._full[split] += 1
        return PlannedShard(name, members, self._folder)
