"""Counts what happened to the samples; the numbers depend on the data alone."""

from collections import Counter, defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from fewstep.data.record import Record


@dataclass
class Range:
    """Smallest, mean and largest of a stream of whole numbers."""

    count: int = 0
    total: int = 0
    low: int | None = None
    high: int | None = None

    def add(self, value: int) -> None:
        """Add one value."""
        self.count += 1
        self.total += value
        self.low = value if self.low is None else min(self.low, value)
        self.high = value if self.high is None else max(self.high, value)

    def summary(self) -> dict[str, float | None]:
        """As JSON; null for an empty stream."""
        mean = self.total / self.count if self.count else None
        return {"min": self.low, "mean": mean, "max": self.high}


@dataclass
class Statistics:
    """The counts of one run; `samples` = kept + rejected + quarantined, without what was skipped."""

    samples: int = 0
    splits: Counter[str] = field(default_factory=Counter)
    rejected: Counter[str] = field(default_factory=Counter)
    quarantined: Counter[str] = field(default_factory=Counter)
    skipped: Counter[str] = field(default_factory=Counter)
    """Reason -> count, of each."""
    cut: bool = False
    """Whether the source has more than `data.count`; not written to any file."""
    caption_length: Range = field(default_factory=Range)
    """Characters, of kept samples."""
    width: Range = field(default_factory=Range)
    height: Range = field(default_factory=Range)
    """Pixels of the originals of kept samples, upright."""
    labels: defaultdict[str, set[str]] = field(default_factory=lambda: defaultdict(set))
    hidden: defaultdict[str, set[str]] = field(default_factory=lambda: defaultdict(set))
    """Attribute -> the values found, for each of the two."""

    def keep(self, split: str, record: Record, size: tuple[int, int]) -> None:
        """Count a sample that goes into `split`; `size`: (width, height) of the original."""
        self.splits[split] += 1
        self.caption_length.add(len(record.caption))
        self.width.add(size[0])
        self.height.add(size[1])
        for attribute, value in (record.labels or {}).items():
            self.labels[attribute].add(value)
        for attribute, value in (record.hidden or {}).items():
            self.hidden[attribute].add(value)

    def __str__(self) -> str:
        """The outcome of all samples, in one line."""
        kept = ", ".join(f"{count} {split}" for split, count in self.splits.items())
        outcome = (
            f"{self.samples} samples: {self.splits.total()} kept{f' ({kept})' if kept else ''}, "
            f"{listed(self.rejected, 'rejected')}, {listed(self.quarantined, 'quarantined')}"
        )
        if self.skipped:
            outcome += f"; skipped {listed(self.skipped, 'file' if self.skipped.total() == 1 else 'files')}"
        if self.cut:
            outcome += f"; stopped after data.count = {self.samples} samples, the source has more"
        return outcome

    def summary(self) -> dict[str, Any]:
        """The content of statistics.json."""
        return {
            "samples": self.samples,
            "kept": self.splits.total(),
            "splits": dict(self.splits),
            "rejected": dict(self.rejected),
            "quarantined": dict(self.quarantined),
            "skipped": dict(self.skipped),
            "caption_length": self.caption_length.summary(),
            "width": self.width.summary(),
            "height": self.height.summary(),
        }


def values_of(met: Mapping[str, set[str]]) -> dict[str, tuple[str, ...]] | None:
    """Attribute -> its sorted values; None when no kept sample has any."""
    return {attribute: tuple(sorted(values)) for attribute, values in met.items()} or None


def listed(reasons: Counter[str], what: str) -> str:
    """E.g. "3 rejected (2 too small, 1 duplicate)", the most frequent reason first."""
    why = ", ".join(f"{count} {reason}" for reason, count in reasons.most_common())
    return f"{reasons.total()} {what}" + (f" ({why})" if why else "")
