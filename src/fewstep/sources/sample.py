"""What a source yields: samples, unreadable and skipped entries; and readers of captions, scores and labels.

The readers raise nothing but ValueError, whatever a user's file holds. The message depends on the file alone
and quotes no value, since it is written to the quarantine list.
"""

import codecs
import json
import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from fewstep.core.errors import UserError

NO_CAPTION = "no caption"
NOT_ADJACENT = "members not adjacent"
EXACT_DIGITS = 300
"""Integers with more digits are read as floats, which may be infinite."""


@dataclass(frozen=True)
class Sample:
    """One image as its source yields it, not checked yet.

    name: where it is (a path, or `archive.tar/member`), for the quarantine list.
    image: the encoded file (png, jpeg, webp ...).
    caption, aesthetic_score: None where the source has none.
    labels: attribute -> value, for attributes that the caption states; None for unlabelled data.
    hidden: the same for attributes that the caption does not state, by which a model's diversity is measured.
    """

    name: str
    image: bytes
    caption: str | None = None
    aesthetic_score: float | None = None
    labels: Mapping[str, str] | None = None
    hidden: Mapping[str, str] | None = None


@dataclass(frozen=True)
class Unreadable:
    """An entry of the source that cannot become a sample.

    name: where it is, relative to the source (`a/b.jpg`, `archive.tar`, `archive.tar/member`).
    reason: one of a few fixed phrases, by which it is counted ("corrupt image").
    detail: what exactly is wrong, or ""; as the list is hashed, it holds no address or absolute path.
    """

    name: str
    reason: str
    detail: str = ""

    def __str__(self) -> str:
        return f"{self.name}: {self.reason}" + (f" ({self.detail})" if self.detail else "")


@dataclass(frozen=True)
class Skipped:
    """An entry of the source that was not meant as a sample, or that no table lists.

    It counts neither as a sample nor as quarantined, but it is reported, so that nothing is dropped silently.

    name: where it is, as in Unreadable. reason: a fixed phrase, by which it is counted ("hidden file").
    """

    name: str
    reason: str


def parse_object(encoded: str | bytes) -> Mapping[str, Any]:
    """A JSON object, in UTF-8, UTF-16 or UTF-32; a byte-order mark is dropped.

    Raises ValueError with the fault.
    """
    if not encoded.strip():
        raise ValueError("empty")
    if isinstance(encoded, bytes):
        encoded = decoded(encoded)
    try:
        value = json.loads(encoded.removeprefix("\ufeff"), parse_int=whole_number)
    except RecursionError:
        raise ValueError("nested too deep") from None
    if isinstance(value, Mapping):
        return value
    raise ValueError("no JSON object")


def decoded(encoded: bytes) -> str:
    """The text of encoded JSON. Raises ValueError when it is in no encoding that JSON may have."""
    encoding = json.detect_encoding(encoded)
    try:
        return codecs.decode(encoded, encoding)
    except UnicodeDecodeError:
        raise ValueError(f"not {encoding.removesuffix('-sig').upper()}") from None


def whole_number(digits: str) -> int | float:
    """An integer, read as a float beyond EXACT_DIGITS: Python refuses integers of some thousand digits."""
    return int(digits) if len(digits) <= EXACT_DIGITS else float(digits)


def caption_in(record: Mapping[str, Any], *names: str) -> str | None:
    """The first of `names` that `record` has. Raises ValueError when it is not well-formed text."""
    for name in names:
        value = record.get(name)
        if value is not None:
            if not isinstance(value, str):
                raise ValueError(f"`{name}` is no text")
            demand_characters(name, value)
            return value
    return None


def demand_characters(name: str, *texts: str) -> None:
    """Raises ValueError on half a surrogate pair, which JSON can express but UTF-8 cannot encode."""
    try:
        for text in texts:
            text.encode()
    except UnicodeEncodeError:
        raise ValueError(f"`{name}` holds half a surrogate pair") from None


def score_in(record: Mapping[str, Any], name: str) -> float | None:
    """The finite number at `name`, also as text; None when absent or blank. Raises ValueError otherwise."""
    value = record.get(name)
    if value is None or (isinstance(value, str) and not value.strip()):
        return None
    try:
        # bool is an int to Python, but `true` is no score.
        score = (
            float(value) if isinstance(value, int | float | str) and not isinstance(value, bool) else math.nan
        )
    except (ValueError, OverflowError):
        score = math.nan
    if not math.isfinite(score):
        raise ValueError(f"`{name}` is no number")
    return score


def labels_in(record: Mapping[str, Any], name: str) -> dict[str, str] | None:
    """Attribute -> value at `name`, for a classifier; None when absent. Raises ValueError on other types."""
    value = record.get(name)
    if value is None:
        return None
    if not isinstance(value, Mapping) or not all(isinstance(label, str) for label in value.values()):
        raise ValueError(f"`{name}` does not map attributes to texts")
    demand_characters(name, *value, *value.values())
    return dict(value)


class Census:
    """Counts the entries of a source, and whether they have captions."""

    def __init__(self) -> None:
        self._captioned = self._silent = self._total = 0
        self._skipped: Counter[str] = Counter()
        self._apart = ""

    def add(self, entry: Sample | Unreadable | Skipped) -> None:
        """Count one entry as the source yields it."""
        if isinstance(entry, Sample) and entry.caption is not None:
            self.add_captioned()
        elif isinstance(entry, Sample):
            self.add_fault(Unreadable(entry.name, NO_CAPTION))
        elif isinstance(entry, Unreadable):
            self.add_fault(entry)
        else:
            self._skipped[entry.reason] += 1

    def add_captioned(self) -> None:
        """Count one sample that has a caption."""
        self._captioned += 1
        self._total += 1

    def add_fault(self, entry: Unreadable) -> None:
        """Count one entry that the source cannot read."""
        self._silent += entry.reason in (NO_CAPTION, NOT_ADJACENT)
        self._total += 1
        if entry.reason == NOT_ADJACENT:
            self._apart = self._apart or str(entry)

    def check(self, where: str | None, expected: str) -> None:
        """Raises UserError if there were no entries, or none of them had a caption.

        Skipped entries do not count as entries; the error reports how many there were, and why.
        """
        if not self._total:
            why = ", ".join(f"{count} {reason}" for reason, count in self._skipped.items())
            number = self._skipped.total()
            nothing = f"nothing but {number} skipped files ({why})" if number else "nothing"
            raise UserError(f"data.path = {where}: {nothing} found there; expected {expected}")
        if self._silent and not self._captioned:
            fault = f"has a caption; expected {expected}"
            if self._apart:
                fault = f"can be read, e.g. {self._apart}"
            raise UserError(f"data.path = {where}: none of its {self._silent} samples {fault}")


def demand_captions(
    entries: Iterable[Sample | Unreadable | Skipped], where: str | None, expected: str
) -> Iterator[Sample | Unreadable | Skipped]:
    """Yield `entries`; at their end, raise UserError if there were none or none of them had a caption."""
    census = Census()
    for entry in entries:
        yield entry
        census.add(entry)
    census.check(where, expected)
