"""The kernel distance of paired sets: its definition, no bias, and intervals that cover what they claim."""

import itertools
import math
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from torch import Tensor
from torch_fidelity.metric_kid import mmd2

from fewstep.core.errors import UserError
from fewstep.evaluation import kernel as module
from fewstep.evaluation.kernel import FEWEST, KERNELS, Comparison, compare, gaussian, polynomial

CAPTIONS, WIDTH = 12, 8


def normal(n: int, index: int) -> Tensor:
    return torch.from_numpy(np.random.default_rng(index).normal(size=(n, WIDTH)))


MEANS = normal(CAPTIONS, 10**6)


def paired(n: int, index: int, *shifts: float) -> tuple[list[Tensor], Tensor]:
    """Sets whose row i has the same caption in all; each is shifted in three of its eight dimensions."""
    captions = torch.from_numpy(np.random.default_rng(10**7 + index).integers(CAPTIONS, size=n))
    real = MEANS[captions] + normal(n, 10 * index)
    direction = torch.tensor([1.0, 1.0, 1.0, 0, 0, 0, 0, 0]).double()
    sets = [
        MEANS[captions] + normal(n, 10 * index + k) + shift * direction
        for k, shift in enumerate(shifts, start=1)
    ]
    return sets, real


def trials(count: int, n: int, *shifts: float) -> Iterator[Comparison]:
    return (compare(*paired(n, index, *shifts)) for index in range(count))


def test_it_is_the_mean_over_pairs_of_different_prompts() -> None:
    (g,), x = paired(9, 0, 0.5)
    h = [
        polynomial(g[[i]], g[[j]])
        + polynomial(x[[i]], x[[j]])
        - polynomial(g[[i]], x[[j]])
        - polynomial(g[[j]], x[[i]])
        for i, j in itertools.permutations(range(9), 2)
    ]
    assert compare([g], x).distance().value == pytest.approx(torch.stack(h).mean().item(), rel=1e-12)


def test_it_is_torch_fidelitys_u_statistic() -> None:
    (g,), x = paired(200, 0, 0.5)
    products = (polynomial(a, b).numpy() for a, b in ((g, g), (g, x), (x, x)))
    expected = mmd2(*products, mmd_est="u-statistic")
    assert compare([g], x).distance().value == pytest.approx(expected, rel=1e-9)


def test_blocks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    sets, x = paired(100, 0, 0.3, 0.1)
    whole = compare(sets, x)
    monkeypatch.setattr(module, "ROWS", 7)
    parts = compare(sets, x)
    for name in ("mean", "rows", "squares", "own", "plug_in"):
        torch.testing.assert_close(getattr(parts, name), getattr(whole, name))


def test_a_shift_has_the_closed_form_of_a_linear_kernel() -> None:
    """Under `x . y / D` the distance of two Gaussians is `|shift|^2 / D`."""
    distances = [
        compare(*paired(60, i, 0.5), kernel=lambda x, y: x @ y.T / WIDTH).distance().value for i in range(200)
    ]
    assert np.mean(distances) == pytest.approx(
        3 * 0.25 / WIDTH, abs=3 * float(np.std(distances)) / math.sqrt(200)
    )


def test_prompts_in_common_cause_no_bias() -> None:
    """Counting a generated image against the real one of its own prompt does, by more than the noise."""
    drawn = list(trials(400, 60, 0.0))
    distances = np.array([comparison.mean[0].item() for comparison in drawn])
    error = distances.std() / math.sqrt(len(distances))
    assert abs(distances.mean()) < 3 * error
    # KID's cross term has n^2 pairs; the n of equal prompts are nearer to each other than others.
    same_prompt = np.array([(c.own[0] - c.mean[0]).item() / c.n for c in drawn])
    assert abs((distances + same_prompt).mean()) > 3 * error


@pytest.mark.parametrize("shift", [0.0, 0.15, 0.6])
def test_the_interval_covers_equal_near_and_far_distributions(shift: float) -> None:
    drawn = list(trials(400, 150, shift))
    expected = float(np.mean([c.mean[0].item() for c in drawn])) if shift else 0.0
    inside = [c.distance().low <= expected <= c.distance().high for c in drawn]
    assert 0.93 <= np.mean(inside) <= 0.97


@pytest.mark.parametrize("shifts", [(0.4, 0.4), (0.5, 0.3), (0.3, 0.5)])
def test_the_interval_of_the_ratio_covers_it(shifts: tuple[float, float]) -> None:
    drawn = list(trials(400, 150, *shifts))
    population = torch.stack([c.mean for c in drawn]).mean(0)
    expected = (population[0] / population[1]).item()
    ratios = [c.ratio(0, 1) for c in drawn]
    inside = [r.low <= expected and (r.high is None or expected <= r.high) for r in ratios]
    assert 0.93 <= np.mean(inside) <= 0.97


def test_a_ratio_to_nothing_has_no_upper_end() -> None:
    unbounded = [c.ratio(0, 1).high is None for c in trials(40, 60, 0.6, 0.0)]
    assert np.mean(unbounded) > 0.8


def test_a_set_against_itself_has_the_ratio_one() -> None:
    (g,), x = paired(150, 0, 0.6)
    ratio = compare([g, g], x).ratio(0, 1)
    assert (ratio.low, ratio.value, ratio.high) == pytest.approx((1, 1, 1))


def test_a_negative_value_lies_in_its_interval() -> None:
    values = [c.distance() for c in trials(100, 40, 0.0)]
    negative = [interval for interval in values if interval.value < 0]
    assert negative and all(interval.low == interval.value for interval in negative)
    assert all(interval.high >= 0 for interval in negative)


def test_the_gaussian_kernel_is_cmmds() -> None:
    x, y = normal(5, 1), normal(5, 2)
    unit_x, unit_y = (z / z.norm(dim=1, keepdim=True) for z in (x, y))
    expected = 1000 * torch.exp(-torch.cdist(unit_x, unit_y).square() / (2 * 10**2))
    torch.testing.assert_close(gaussian(x, y), expected)
    assert set(KERNELS) == {"polynomial", "gaussian"}


def test_too_few_images_are_refused() -> None:
    with pytest.raises(UserError, match=f"7 images are too few; evaluate at least {FEWEST}"):
        compare([normal(7, 0)], normal(7, 1))
