"""What a source gives: samples, what cannot become one, and how captions and scores are read."""

import json
import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from fewstep.errors import UserError


@dataclass(frozen=True)
class Sample:
    """One picture as its source gives it, nothing checked yet.

    name: where it is (a path, or `archive.tar/member`), for the quarantine list.
    image: the encoded file (png, jpeg, webp ...).
    caption, aesthetic_score: None where the source has none.
    labels: attribute -> value for labelled data, None otherwise.
    """

    name: str
    image: bytes
    caption: str | None = None
    aesthetic_score: float | None = None
    labels: Mapping[str, str] | None = None


@dataclass(frozen=True)
class Unreadable:
    """Something of the source that cannot become a sample.

    name: where it is, relative to the source (`a/b.jpg`, `archive.tar`, `archive.tar/member`).
    reason: one of a few fixed phrases, by which it is counted ("corrupt picture").
    detail: what exactly is wrong, or ""; as the list is hashed, it holds no address or absolute path.
    """

    name: str
    reason: str
    detail: str = ""

    def __str__(self) -> str:
        return f"{self.name}: {self.reason}" + (f" ({self.detail})" if self.detail else "")


@dataclass(frozen=True)
class Skipped:
    """Something of the source that is no sample and was not meant as one, or that no table lists.

    It costs no sample and no share of the quarantine, but it is counted, so that nothing is lost unseen.

    name: where it is, as in Unreadable. reason: a fixed phrase, by which it is counted ("format not decoded").
    """

    name: str
    reason: str


def parse_object(encoded: str | bytes) -> Mapping[str, Any]:
    """A JSON object. Raises ValueError saying what is wrong."""
    value = json.loads(encoded)
    if isinstance(value, Mapping):
        return value
    raise ValueError("no JSON object")


def caption_in(record: Mapping[str, Any], *names: str) -> str | None:
    """The first of `names` that `record` has. Raises ValueError when it is no well-formed text."""
    for name in names:
        value = record.get(name)
        if value is not None:
            if not isinstance(value, str):
                raise ValueError(f"`{name}` is no text")
            value.encode()  # JSON can spell half a surrogate pair, which nothing can store
            return value
    return None


def score_in(record: Mapping[str, Any], name: str) -> float | None:
    """The finite number at `name`; None when absent or empty. Raises ValueError otherwise."""
    value = record.get(name)
    if value is None or value == "":
        return None
    try:
        score = float(value)
    except TypeError:
        score = math.nan
    if not math.isfinite(score):
        raise ValueError(f"`{name}` is no number")
    return score


def labels_in(record: Mapping[str, Any], name: str) -> dict[str, str] | None:
    """Attribute -> value at `name`, for a judge; None when absent. Raises ValueError when it is neither."""
    value = record.get(name)
    if value is None:
        return None
    if not isinstance(value, Mapping) or not all(isinstance(label, str) for label in value.values()):
        raise ValueError(f"`{name}` does not map attributes to texts")
    return dict(value)


def demand_captions(
    entries: Iterable[Sample | Unreadable], where: str | None, expected: str
) -> Iterator[Sample | Unreadable]:
    """`entries`, and at their end a UserError when there were none, or not one of them had a caption."""
    found = samples = captioned = 0
    for entry in entries:
        yield entry
        found += 1
        if isinstance(entry, Sample):
            samples += 1
            captioned += entry.caption is not None
    if not found:
        raise UserError(f"data.path = {where}: nothing found there; expected {expected}")
    if samples and not captioned:
        raise UserError(
            f"data.path = {where}: none of its {samples} samples has a caption; expected {expected}"
        )
