"""`fewstep evaluate`: several draws of the evaluation set, and the spread over them."""

from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import pytest
import yaml

from fewstep.config.data import DataConfig
from fewstep.core.paths import DATA, TEACHER
from fewstep.evaluation.full import FLOOR, evaluate_fully
from fewstep.preparation.prepare import prepare
from tests.miniature import import_miniature

PARAMS = {
    "seed": 0,
    "features": str(TEACHER),
    "sampling": {"steps": 2, "guidance": 1.0},
    "evaluation_set": {"pictures": 8, "reference": 20, "grid": 2, "diversity": {"prompts": 2, "samples": 2}},
}
IMAGES = 20


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> dict[int, list[dict[str, Any]]]:
    """What one draw and what two print of a miniature teacher in one and in two steps."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("project"))
        Path("params.yaml").write_text(yaml.safe_dump(PARAMS))
        prepare(DataConfig(source="shapes", count=120, resolution=64, heldout=0.5), 0, DATA)
        import_miniature("sd")
        return {draws: list(evaluate_fully({"teacher": [1, 2]}, IMAGES, draws)) for draws in (1, 2)}


def test_one_draw_gives_each_model_and_the_floor(measured: dict[int, list[dict[str, Any]]]) -> None:
    teacher, floor = measured[1]
    assert (teacher["model"], teacher["pictures"], [*teacher["steps"]]) == ("teacher", IMAGES, ["1", "2"])
    assert (floor["model"], floor["images"]) == (FLOOR, IMAGES)
    assert teacher["steps"]["2"]["kernel_ratio"]["value"] == pytest.approx(1)


def test_the_first_of_several_draws_is_that_of_one(measured: dict[int, list[dict[str, Any]]]) -> None:
    assert measured[2][:2] == [{"draw": 0, **record} for record in measured[1]]


def test_another_draw_has_other_prompts_and_noise(measured: dict[int, list[dict[str, Any]]]) -> None:
    first, second = (measured[2][i]["steps"]["1"] for i in (0, 2))
    assert measured[2][2]["draw"] == 1
    assert first["kernel_distance"] != second["kernel_distance"]
    assert first["teacher_rmse"] != second["teacher_rmse"]


def test_the_spread_is_that_of_the_draws(measured: dict[int, list[dict[str, Any]]]) -> None:
    once, twice, floor = measured[2][4:]
    assert [(record["model"], record.get("steps")) for record in (once, twice, floor)] == [
        ("teacher", 1),
        ("teacher", 2),
        (FLOOR, None),
    ]
    values = [measured[2][i]["steps"]["1"]["kernel_distance"]["value"] for i in (0, 2)]
    assert once["draws"] == 2
    assert once["kernel_distance"] == {"mean": fmean(values), "standard_deviation": stdev(values)}
    values = [measured[2][i]["frechet_distance"] for i in (1, 3)]
    assert floor["frechet_distance"] == {"mean": fmean(values), "standard_deviation": stdev(values)}
