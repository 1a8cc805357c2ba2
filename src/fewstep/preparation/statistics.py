"""What happened to the samples, in numbers that depend on nothing but the data."""

from collections import Counter, defaultdict
from dataclasses import dataclass, field
from typing import Any

from fewstep.data.shards import Record


@dataclass
class Range:
    """Smallest, mean and largest of a stream of whole numbers."""

    count: int = 0
    total: int = 0
    low: int | None = None
    high: int | None = None

    def add(self, value: int) -> None:
        """Take one value in."""
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
    """The counts of one run; `samples` = kept + rejected + quarantined."""

    samples: int = 0
    splits: Counter[str] = field(default_factory=Counter)
    rejected: Counter[str] = field(default_factory=Counter)
    caption_length: Range = field(default_factory=Range)
    """Characters, of kept samples."""
    width: Range = field(default_factory=Range)
    height: Range = field(default_factory=Range)
    """Pixels of the originals of kept samples, upright."""
    values: defaultdict[str, set[str]] = field(default_factory=lambda: defaultdict(set))
    """Label attribute -> the values met."""

    def keep(self, split: str, record: Record, size: tuple[int, int]) -> None:
        """Count a sample that goes into `split`; `size`: (width, height) of the original."""
        self.splits[split] += 1
        self.caption_length.add(len(record.caption))
        self.width.add(size[0])
        self.height.add(size[1])
        for attribute, value in (record.labels or {}).items():
            self.values[attribute].add(value)

    def labels(self) -> dict[str, tuple[str, ...]] | None:
        """Attribute -> its sorted values; None when no kept sample has labels."""
        return {attribute: tuple(sorted(met)) for attribute, met in self.values.items()} or None

    def summary(self, quarantined: Counter[str]) -> dict[str, Any]:
        """The content of statistics.json; `quarantined`: reason -> count."""
        return {
            "samples": self.samples,
            "kept": self.splits.total(),
            "splits": dict(self.splits),
            "rejected": dict(self.rejected),
            "quarantined": dict(quarantined),
            "caption_length": self.caption_length.summary(),
            "width": self.width.summary(),
            "height": self.height.summary(),
        }
