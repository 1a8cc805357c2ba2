"""JSON records of figures and their intervals: read strictly, written for human readers too."""

from pathlib import Path
from typing import Any, TypeVar

from pydantic import ConfigDict, Field, model_validator

from fewstep.config.base import Section, validate
from fewstep.core.files import read_json, write_json

DIGITS = 6
"""Significant digits of a written figure; more would be noise."""


class Record(Section):
    """Base of all figures: frozen; unknown keys, wrong types, `nan` and `inf` are refused."""

    model_config = ConfigDict(strict=True)


class Interval(Record):
    """A figure and its 95 % interval, `low <= value <= high`."""

    value: float
    low: float
    high: float

    @model_validator(mode="after")
    def _ordered(self) -> "Interval":
        if not self.low <= self.value <= self.high:
            raise ValueError("an interval must hold its value: low <= value <= high")
        return self


class Ratio(Record):
    """A ratio and its 95 % interval; 0 <= low.

    value: null where the denominator is not above 0. high: null where the interval has no upper end, because
    the denominator is not significantly different from 0.
    """

    value: float | None
    low: float = Field(ge=0)
    high: float | None


R = TypeVar("R", bound=Record)


def write_record(path: Path, record: Record) -> None:
    """Write deterministic JSON, floats rounded to `DIGITS` significant digits."""
    write_json(path, rounded(record.model_dump(mode="json")))


def read_record(kind: type[R], path: Path) -> R:
    """Read what `write_record` wrote. Raises UserError naming the file and every wrong key."""
    return validate(kind, read_json(path), "", path)


def rounded(value: Any) -> Any:
    """`value` with every float in it rounded to `DIGITS` significant digits."""
    if isinstance(value, float):
        return float(f"{value:.{DIGITS}g}")
    if isinstance(value, dict):
        return {key: rounded(item) for key, item in value.items()}
    return value
