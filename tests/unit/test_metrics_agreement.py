"""Prompt accuracy, agreement with the teacher, speed."""

import time

import pytest
import torch

from fewstep.core.errors import UserError
from fewstep.core.keyed import Key
from fewstep.evaluation.accuracy import prompt_accuracy, wilson
from fewstep.evaluation.agreement import teacher_rmse, teacher_similarity
from fewstep.evaluation.speed import machine, measure_speed, median_seconds, memory_counter

CPU = torch.device("cpu")


def noise(*shape: int, index: int = 0) -> torch.Tensor:
    return torch.from_numpy(Key(0, "test/agreement").normal([index], shape)[0])


def test_accuracy_counts_images_with_every_attribute_right() -> None:
    recognised = [
        {"shape": "ring", "colour": "red"},
        {"shape": "ring", "colour": "blue"},
        {"shape": "star", "colour": "red"},
        {"shape": "star", "colour": "red"},
    ]
    wanted = [
        {"shape": "ring", "colour": "red"},
        {"shape": "ring", "colour": "red"},
        {"shape": "star"},
        None,
    ]
    accuracy = prompt_accuracy(recognised, wanted)
    assert accuracy is not None
    assert accuracy.prompt == wilson(2, 3)
    assert accuracy.attributes == {"shape": 1.0, "colour": 0.5}


def test_accuracy_of_unlabelled_prompts_is_none_and_of_unknown_attributes_an_error() -> None:
    assert prompt_accuracy([{"shape": "ring"}] * 2, [None, {}]) is None
    with pytest.raises(UserError, match="does not know texture"):
        prompt_accuracy([{"shape": "ring"}], [{"texture": "rough"}])


def test_wilson_is_the_textbook_interval() -> None:
    """Newcombe 1998, table I: 81 of 263 and 0 of 20, method 3."""
    for (k, n), (low, high) in {(81, 263): (0.2553, 0.3662), (0, 20): (0.0, 0.1611)}.items():
        interval = wilson(k, n)
        assert [interval.low, interval.high] == pytest.approx([low, high], abs=5e-5)
    assert wilson(20, 20).high == 1.0


def test_rmse_is_in_units_of_the_pixel_range() -> None:
    black, white = -torch.ones(4, 3, 8, 8), torch.ones(4, 3, 8, 8)
    assert teacher_rmse(black, white) == 1.0
    assert teacher_rmse(white, white) == 0.0
    assert teacher_rmse(black, black + 0.2) == pytest.approx(0.1)


def test_similarity_is_1_for_the_same_0_for_unrelated_and_minus_1_for_opposite_images() -> None:
    features = noise(400, 32) + 10
    assert teacher_similarity(features, features) == pytest.approx(1)
    assert abs(teacher_similarity(noise(400, 32, index=1) + 10, features)) < 0.03
    assert teacher_similarity(2 * features.mean(dim=0) - features, features) == pytest.approx(-1, abs=1e-5)


def test_speed_is_the_time_it_takes() -> None:
    speed = measure_speed(lambda images: time.sleep(0.01 * images), batch_size=4, device=CPU, seconds=0.1)
    assert 0.01 <= speed.latency_s < 0.03
    assert 40 < speed.pictures_per_second <= 100
    assert speed.peak_memory_bytes > 2**20
    assert memory_counter(CPU) == "ru_maxrss"
    assert torch.__version__ in machine(CPU)


@pytest.mark.parametrize(("one_takes", "at_most"), [(0.001, 51), (0.02, 4), (0.2, 2)])
def test_measuring_the_speed_takes_no_longer_than_asked(one_takes: float, at_most: int) -> None:
    """One draw to warm up, then until 0.05 seconds are over."""
    drawn: list[int] = []

    def draw(images: int) -> None:
        drawn.append(images)
        time.sleep(one_takes)

    assert median_seconds(draw, 3, 0.05) >= one_takes
    assert 2 <= len(drawn) <= at_most and set(drawn) == {3}
