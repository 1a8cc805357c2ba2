"""The files of figures: exact when read back, readable, strict."""

import json
from pathlib import Path
from typing import Any

import pytest

from fewstep.core.errors import UserError
from fewstep.core.files import read_json, write_json
from fewstep.evaluation.record import Interval, Ratio, read_record, rounded, write_record
from fewstep.evaluation.schema import Metrics, Reference, Speed, SpeedLog, StepMetrics
from tests.reports import figures, reference

STEP = StepMetrics(
    **dict(figures(1.23456789e-5)),
    nfe=4,
    kernel_ratio=Ratio(value=None, low=0.0, high=None),
    layout_ratio=Ratio(value=1.2345678912, low=1.0, high=1.5),
    teacher_kernel_distance=Interval(value=-1.23456789e-5, low=-1.3e-5, high=0.01),
    teacher_frechet_distance=0.25,
    teacher_rmse=0.05,
    teacher_similarity=0.9,
    flops_per_picture=1234567890123.0,
    flags=("few kinds of images", "detail -23%"),
)
METRICS = Metrics(
    model="student",
    manifest="0" * 64,
    pictures=500,
    reference=1000,
    features="judge",
    parameters=123456789,
    straightness=None,
    steps={"1": STEP, "4": STEP.model_copy(update={"prompt_accuracy": None, "attributes": None})},
)


def test_what_is_written_is_read_back_and_written_the_same(tmp_path: Path) -> None:
    first, second = tmp_path / "a.json", tmp_path / "b.json"
    write_record(first, METRICS)
    write_record(second, read_record(Metrics, first))
    assert first.read_bytes() == second.read_bytes()
    assert read_record(Metrics, first).steps.keys() == METRICS.steps.keys()
    assert read_record(Metrics, first).steps["1"].flags == STEP.flags


@pytest.mark.parametrize("floor", [True, False])
def test_what_models_are_read_against_round_trips(tmp_path: Path, floor: bool) -> None:
    first, second = tmp_path / "a.json", tmp_path / "b.json"
    write_record(first, reference(floor))
    write_record(second, read_record(Reference, first))
    assert first.read_bytes() == second.read_bytes()


def test_floats_have_six_digits_and_counts_all_of_theirs(tmp_path: Path) -> None:
    write_record(tmp_path / "m.json", METRICS)
    written = json.loads((tmp_path / "m.json").read_text())
    assert written["steps"]["1"]["layout_ratio"]["value"] == 1.23457
    assert written["steps"]["1"]["teacher_kernel_distance"]["value"] == -1.23457e-05
    assert written["steps"]["1"]["flops_per_picture"] == 1.23457e12
    assert written["parameters"] == 123456789


def test_rounding_twice_is_rounding_once() -> None:
    value = {"a": 1 / 3, "b": {"c": 1e-7 / 3}, "d": None, "e": 2**53 + 1, "f": True}
    assert rounded(rounded(value)) == rounded(value)


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"precision": 1.5}, "steps.1.precision"),
        ({"precision": "0.5"}, "steps.1.precision"),
        ({"fid": 3.0}, "steps.1.fid = 3.0: no such parameter"),
        ({"recall": None}, "steps.1.recall"),
        ({"kernel_distance": {"value": 2.0, "low": 0.0, "high": 1.0}}, "low <= value <= high"),
    ],
)
def test_a_wrong_field_is_refused_by_name(tmp_path: Path, change: dict[str, Any], complaint: str) -> None:
    path = tmp_path / "m.json"
    write_record(path, METRICS)
    values = read_json(path)
    values["steps"]["1"] |= change
    write_json(path, values)
    with pytest.raises(UserError, match=r"m\.json") as refused:
        read_record(Metrics, path)
    assert complaint in str(refused.value)


def test_step_counts_are_whole_numbers(tmp_path: Path) -> None:
    path = tmp_path / "m.json"
    for key in ("0", "four", "1.5"):
        write_json(path, METRICS.model_dump(mode="json") | {"steps": {key: STEP.model_dump(mode="json")}})
        with pytest.raises(UserError, match="steps"):
            read_record(Metrics, path)


def test_a_speed_log_round_trips(tmp_path: Path) -> None:
    speed = Speed(latency_s=0.125, pictures_per_second=64.0, peak_memory_bytes=2**30)
    log = SpeedLog(
        model="student",
        machine="a box",
        device="cpu",
        memory_counter="ru_maxrss",
        batch_size=8,
        steps={"1": speed},
    )
    write_record(tmp_path / "s.json", log)
    assert read_record(SpeedLog, tmp_path / "s.json") == log
