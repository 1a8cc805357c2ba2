"""Spread of figures over several draws of the evaluation set."""

from collections.abc import Mapping, Sequence
from statistics import fmean, stdev
from typing import Any


def spread(draws: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Mean and standard deviation over draws of every number in records of one kind.

    draws: at least two records, as `model_dump` returns them. An interval and a ratio count as their value.
    Returns a record of the same shape with `{"mean", "standard_deviation"}` for each number. Text is left
    out, and so is what is null or missing in some draw. The standard deviation is that of a single draw
    (divisor n - 1).
    """
    shared = [key for key in draws[0] if all(key in draw for draw in draws)]
    statistics = {key: of_one([draw[key] for draw in draws]) for key in shared}
    return {key: value for key, value in statistics.items() if value is not None}


def of_one(values: Sequence[Any]) -> dict[str, Any] | None:
    """Mean and standard deviation of one entry; None where it neither is nor contains a number."""
    if all(isinstance(value, Mapping) for value in values):
        if values[0].keys() == {"value", "low", "high"}:
            return of_one([value["value"] for value in values])
        return spread(values) or None
    if all(isinstance(value, int | float) for value in values):
        return {"mean": fmean(values), "standard_deviation": stdev(values)}
    return None
