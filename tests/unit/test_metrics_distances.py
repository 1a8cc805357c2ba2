"""Frechet and kernel distance, precision and recall: closed forms, clean-fid, honest intervals."""

import numpy as np
import pytest
import scipy  # type: ignore[import-untyped]
import torch
from cleanfid import fid  # type: ignore[import-untyped]

from fewstep.errors import UserError
from fewstep.evaluation.frechet import ROWS, distance_to, frechet_distance, kernel_distance
from fewstep.evaluation.precision_recall import precision_recall
from fewstep.keyed import Key

KEY = Key(0, "test/bootstrap")


def gaussian(n: int, d: int, index: int, shift: float = 0.0, scale: float = 1.0) -> torch.Tensor:
    return torch.from_numpy(Key(1, "test/gaussian").normal(range(index, index + n), (d,))) * scale + shift


def test_frechet_between_commuting_gaussians_is_the_closed_form() -> None:
    m, s = torch.tensor([1.0, 0.0, -2.0]).double(), torch.tensor([4.0, 1.0, 0.25]).double()
    other_m, other_s = torch.zeros(3).double(), torch.tensor([1.0, 9.0, 0.25]).double()
    rotation = torch.linalg.qr(gaussian(3, 3, 0).double()).Q
    found = distance_to(rotation @ m, rotation @ s.diag() @ rotation.T)(
        rotation @ other_m, rotation @ other_s.diag() @ rotation.T
    )
    expected = (m - other_m).square().sum() + (s.sqrt() - other_s.sqrt()).square().sum()
    torch.testing.assert_close(found, expected)


def test_frechet_between_two_dimensional_gaussians_is_the_closed_form() -> None:
    """In two dimensions tr sqrt(A) = sqrt(tr A + 2 sqrt(det A)), also where S and S' do not commute."""
    s = torch.tensor([[2.0, 0.5], [0.5, 1.0]]).double()
    other = torch.tensor([[1.0, -0.3], [-0.3, 3.0]]).double()
    product = s @ other
    shared = (product.trace() + 2 * product.det().sqrt()).sqrt()
    zero = torch.zeros(2).double()
    torch.testing.assert_close(distance_to(zero, s)(zero, other), s.trace() + other.trace() - 2 * shared)


@pytest.mark.skipif(
    tuple(map(int, scipy.__version__.split(".")[:2])) >= (1, 18), reason="clean-fid calls sqrtm(disp=...)"
)
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_frechet_is_clean_fids() -> None:
    x, y = gaussian(300, 16, 0, shift=0.3), gaussian(200, 16, 300, scale=1.5)
    assert frechet_distance(x, y, KEY, 2).value == pytest.approx(
        fid.fid_from_feats(x.numpy(), y.numpy()), rel=1e-5
    )


def test_kernel_is_clean_fids() -> None:
    x, y = gaussian(300, 16, 0, shift=0.3), gaussian(300, 16, 300, scale=1.5)
    expected = fid.kernel_distance(x.double().numpy(), y.double().numpy(), num_subsets=1)
    assert kernel_distance(x, y) == pytest.approx(expected, rel=1e-9)


def test_equal_sets_are_at_no_distance() -> None:
    x = gaussian(200, 8, 0)
    assert frechet_distance(x, x, KEY).value == pytest.approx(0, abs=1e-9)
    assert abs(kernel_distance(x, gaussian(200, 8, 200))) < 0.1 * kernel_distance(
        x, gaussian(200, 8, 200, 0.5)
    )


def test_kernel_distance_is_unbiased() -> None:
    draws = [kernel_distance(gaussian(50, 4, 100 * i), gaussian(50, 4, 100 * i + 50)) for i in range(200)]
    assert abs(np.mean(draws)) < 3 * np.std(draws) / np.sqrt(len(draws))


def test_sets_larger_than_a_block_are_measured_whole() -> None:
    x, y = gaussian(ROWS + 76, 4, 0), gaussian(ROWS + 76, 4, 2000, 0.5)
    expected = fid.kernel_distance(
        x.double().numpy(), y.double().numpy(), num_subsets=1, max_subset_size=9999
    )
    assert kernel_distance(x, y) == pytest.approx(expected, rel=1e-9)
    assert precision_recall(x, y) == precision_recall(x.flip(0), y.roll(500, 0))


def test_the_interval_covers_what_other_noises_would_give() -> None:
    n, d, trials = 200, 6, 60
    reference = gaussian(400, d, 10**6)
    found = [frechet_distance(gaussian(n, d, n * i, 0.2), reference, KEY, 100) for i in range(trials)]
    expected = np.mean([interval.value for interval in found])
    covered = sum(interval.low <= expected <= interval.high for interval in found)
    assert covered / trials >= 0.85


def test_the_interval_is_keyed() -> None:
    x, y = gaussian(500, 64, 0), gaussian(500, 64, 500)
    found = frechet_distance(x, y, KEY)
    assert found == frechet_distance(x, y, KEY)
    assert found.value == frechet_distance(x, y, Key(1, "other")).value
    assert found != frechet_distance(x, y, Key(1, "other"))


def test_too_few_or_broken_features_are_refused() -> None:
    x, y = gaussian(64, 64, 0), gaussian(100, 64, 64)
    with pytest.raises(UserError, match="64 generated pictures cannot fill 64 features"):
        frechet_distance(x, y, KEY)
    with pytest.raises(UserError, match="64 reference pictures"):
        frechet_distance(y, x, KEY)
    y[3, 5] = float("nan")
    for measure in (
        lambda: frechet_distance(x, y, KEY),
        lambda: kernel_distance(x, y),
        lambda: precision_recall(x, y),
    ):
        with pytest.raises(UserError, match="reference pictures are not finite"):
            measure()


def test_precision_and_recall_of_the_same_of_far_and_of_part() -> None:
    x = gaussian(100, 2, 0)
    assert precision_recall(x, x) == (1.0, 1.0)
    assert precision_recall(x, x + 1000) == (0.0, 0.0)
    two_modes = torch.cat([x, x + 1000])
    assert precision_recall(x, two_modes) == (1.0, 0.5)
    assert precision_recall(two_modes, x) == (0.5, 1.0)


def test_a_collapsed_model_keeps_its_precision_and_loses_its_recall() -> None:
    """Its duplicates have balls of radius 0, which still hold the points themselves."""
    reference = gaussian(100, 2, 0)
    found = precision_recall(reference[:1].expand(50, 2), reference)
    assert found == (1.0, 0.01)
