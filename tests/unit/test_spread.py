"""Spread of figures over draws: closed form, and what has no spread is left out."""

import math
from typing import Any

import pytest

from fewstep.evaluation.record import Interval, Ratio
from fewstep.evaluation.spread import spread
from tests.reports import figures


def test_mean_and_standard_deviation_are_those_of_the_values() -> None:
    draws = [
        {
            "nfe": 2,
            "precision": value,
            "kernel_distance": Interval(value=10 * value, low=-1, high=99).model_dump(),
            "kernel_ratio": Ratio(value=value, low=0, high=None).model_dump(),
            "hidden": {"place": {"shares": {"left": value}, "entropy": None}},
        }
        for value in (1.0, 2.0, 6.0)
    ]
    once = {"mean": pytest.approx(3.0), "standard_deviation": pytest.approx(math.sqrt(7))}
    assert spread(draws) == {
        "nfe": {"mean": 2, "standard_deviation": 0},
        "precision": once,
        "kernel_distance": {
            "mean": pytest.approx(30),
            "standard_deviation": pytest.approx(10 * math.sqrt(7)),
        },
        "kernel_ratio": once,
        "hidden": {"place": {"shares": {"left": once}}},
    }


def test_what_is_text_or_missing_in_a_draw_has_no_spread() -> None:
    draws: list[dict[str, Any]] = [
        {
            "flags": ["a"],
            "ratio": {"value": 1.0, "low": 0.0, "high": None},
            "model": "x",
            "clip": None,
            "n": 1,
        },
        {"flags": [], "ratio": {"value": None, "low": 0.0, "high": None}, "model": "x", "clip": 3.0, "m": 1},
    ]
    assert spread(draws) == {}


def test_every_figure_of_a_record_has_a_spread() -> None:
    first, second = (figures(distance).model_dump(mode="json") for distance in (1.0, 3.0))
    summary = spread([first, second])
    assert summary["kernel_distance"] == {"mean": 2.0, "standard_deviation": pytest.approx(math.sqrt(2))}
    assert summary.keys() == first.keys() - {"prompt_similarity"}
    assert summary["diversity"].keys() == first["diversity"].keys()
