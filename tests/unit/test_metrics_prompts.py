"""Diversity per prompt, hidden attributes, drift of tones, copies: closed forms and vendi-score."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor
from vendi_score import vendi

from fewstep.data.shards import ImageRecord
from fewstep.evaluation.copies import EXPECTED, copied, nearness_limit
from fewstep.evaluation.diversity import effective_number, mean_interval, pairwise_distance, vendi_score
from fewstep.evaluation.evaluation_set import grouped, match
from fewstep.evaluation.hidden import chi_square, entropy, hidden_attribute
from fewstep.evaluation.tone import drift
from fewstep.measures import TONES
from fewstep.measures.tone import tones


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.from_numpy(np.random.default_rng(seed).normal(size=shape))


def test_pairwise_distance_is_the_mean_over_pairs_and_prompts() -> None:
    points = torch.tensor([[0.0, 0.0], [3.0, 4.0], [1.0, 1.0], [1.0, 3.0]])
    distance = pairwise_distance(points, [[0, 1], [2, 3]])
    assert distance.value == pytest.approx((5 + 2) / 2)
    assert distance.low < distance.value < distance.high


def test_the_vendi_score_is_that_of_its_authors() -> None:
    x = normal(7, 5)
    unit = (x / x.norm(dim=1, keepdim=True)).numpy()
    assert effective_number(x) == pytest.approx(vendi.score_dual(unit), rel=1e-6)
    assert effective_number(torch.eye(6)) == pytest.approx(6)
    assert effective_number(torch.ones(6, 3)) == pytest.approx(1)


def test_one_image_per_prompt_has_no_diversity() -> None:
    x = normal(3, 4).repeat_interleave(4, 0)
    groups = [[4 * i + j for j in range(4)] for i in range(3)]
    assert pairwise_distance(x, groups).value == 0
    assert vendi_score(x, groups) == pytest.approx(1)


def test_students_interval_covers() -> None:
    rows = normal(400, 12)
    intervals = [mean_interval(row.tolist()) for row in rows]
    assert 0.93 <= np.mean([interval.low <= 0 <= interval.high for interval in intervals]) <= 0.97


def test_equal_frequencies_have_a_uniform_p_value() -> None:
    rng = np.random.default_rng(0)
    shares = [0.1, 0.2, 0.3, 0.4]
    counts = [[rng.multinomial(n, shares).tolist() for n in (300, 400)] for _ in range(400)]
    p_values = [chi_square(mine, theirs) for mine, theirs in counts]
    assert 0.03 <= np.mean(np.array(p_values) < 0.05) <= 0.07
    assert chi_square([20, 20], [40, 0]) == pytest.approx(math.erfc(math.sqrt(80 / 3 / 2)))
    assert chi_square([5], [5]) == 1


def test_entropy_of_few_values_is_nearly_unbiased() -> None:
    rng = np.random.default_rng(1)
    entropies = [entropy([str(v) for v in rng.integers(4, size=16)]) for _ in range(400)]
    assert np.mean(entropies) == pytest.approx(2, abs=0.03)
    assert entropy(["a"] * 8) == 0


def test_hidden_attributes_are_counted_over_all_and_per_prompt() -> None:
    attribute = hidden_attribute(list("aabb"), list("abab"), [[0, 1], [2, 3]])
    assert attribute.shares == {"a": 0.5, "b": 0.5} and attribute.p_value == 1
    assert attribute.entropy == 0  # each prompt has its own


def test_tones_of_plain_images() -> None:
    grey, red, board = torch.zeros(3, 8, 8), -torch.ones(3, 8, 8), -torch.ones(3, 8, 8)
    red[0] = 1
    board[:, :, ::2] = 1
    measured = dict(zip(TONES, tones(torch.stack([grey, red, board])).T, strict=True))
    torch.testing.assert_close(measured["brightness"], torch.tensor([0.5, 0.299, 0.5]))
    torch.testing.assert_close(measured["saturation"], torch.tensor([0.0, 1.0, 0.0]))
    torch.testing.assert_close(measured["contrast"], torch.tensor([0.0, 0.0, 0.5]))
    assert measured["detail"][0] == 0 and measured["detail"][1] < 1e-6 and measured["detail"][2] > 0.5


def test_drift_is_relative_to_the_real_mean() -> None:
    real = normal(50, 4).abs() + 1
    changes = drift(real * 1.1, real)
    assert all(change.value == pytest.approx(0.1) for change in changes.values())
    assert all(change.low <= 0.1 <= change.high for change in changes.values())


def test_copies_of_training_images_are_detected_and_new_ones_are_not() -> None:
    training, real, new = normal(500, 6), normal(4000, 6, seed=1), normal(400, 6, seed=2)
    limit = nearness_limit(real, training)
    assert copied(training[:100], training, limit).value == 1
    share = copied(new, training, limit)
    assert share.low <= EXPECTED <= share.high


def test_equal_prompts_are_each_others_samples() -> None:
    extra, groups = grouped(["a", "b", "a", "c", "a"], prompts=2, samples=3)
    assert extra == ["b", "b"] and groups == [[0, 2, 4], [1, 5, 6]]


def test_a_real_image_stands_for_one_prompt_only() -> None:
    pool = [ImageRecord(str(i), np.zeros((1, 1, 3), np.uint8), c, None) for i, c in enumerate("abcab")]
    assert match(["b", "a", "b", "a"], pool) == [1, 0, 4, 3]
    assert match(["b", "b", "b", "a"], pool) == [1, 4]  # no third one
