"""Frechet distance, precision and recall, density and coverage: closed forms and well-kept libraries."""

import pytest
import scipy  # type: ignore[import-untyped]
import torch
from cleanfid import fid  # type: ignore[import-untyped]
from prdc import compute_prdc
from torch_fidelity.metric_fid import fid_features_to_statistics, fid_statistics_to_metric
from torch_fidelity.metric_prc import prc_features_to_metric

from fewstep.core.errors import UserError
from fewstep.core.keyed import Key
from fewstep.evaluation.frechet import ROWS, distance_to, frechet_distance
from fewstep.evaluation.kernel import compare
from fewstep.evaluation.neighbours import NEARBY, NEAREST, neighbours


def gaussian(n: int, d: int, index: int, shift: float = 0.0, scale: float = 1.0) -> torch.Tensor:
    return torch.from_numpy(Key(1, "test/gaussian").normal(range(index, index + n), (d,))) * scale + shift


def test_frechet_between_commuting_gaussians_is_the_closed_form() -> None:
    m, s = torch.tensor([1.0, 0.0, -2.0]).double(), torch.tensor([4.0, 1.0, 0.25]).double()
    other_m, other_s = torch.zeros(3).double(), torch.tensor([1.0, 9.0, 0.25]).double()
    rotation = torch.linalg.qr(gaussian(3, 3, 0).double()).Q
    distance = distance_to(rotation @ m, rotation @ s.diag() @ rotation.T)(
        rotation @ other_m, rotation @ other_s.diag() @ rotation.T
    )
    expected = (m - other_m).square().sum() + (s.sqrt() - other_s.sqrt()).square().sum()
    torch.testing.assert_close(distance, expected)


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
    assert frechet_distance(x, y) == pytest.approx(fid.fid_from_feats(x.numpy(), y.numpy()), rel=1e-5)


def test_equal_sets_are_at_no_distance() -> None:
    x = gaussian(200, 8, 0)
    assert frechet_distance(x, x) == pytest.approx(0, abs=1e-9)


def test_frechet_is_torch_fidelitys() -> None:
    x, y = gaussian(300, 16, 0, shift=0.3), gaussian(200, 16, 300, scale=1.5)
    mine, theirs = (fid_features_to_statistics(z) for z in (x, y))
    expected = fid_statistics_to_metric(mine, theirs, verbose=False)["frechet_inception_distance"]
    assert frechet_distance(x, y) == pytest.approx(expected, rel=1e-6)


def test_neighbours_are_those_of_prdc_and_torch_fidelity() -> None:
    x, y = gaussian(300, 8, 0, shift=0.3), gaussian(ROWS + 76, 8, 300, scale=1.2)
    measured = neighbours(x, y)
    near = compute_prdc(y.numpy(), x.numpy(), NEARBY)
    assert (measured.density, measured.coverage) == pytest.approx((near["density"], near["coverage"]))
    nearest = prc_features_to_metric(x, y, verbose=False, prc_neighborhood=NEAREST)
    assert measured.precision == pytest.approx(nearest["precision"])
    assert measured.recall == pytest.approx(nearest["recall"])


def test_too_few_or_broken_features_are_refused() -> None:
    x, y = gaussian(64, 64, 0), gaussian(100, 64, 64)
    with pytest.raises(UserError, match="64 generated images cannot fill 64 features"):
        frechet_distance(x, y)
    with pytest.raises(UserError, match="64 reference images"):
        frechet_distance(y, x)
    y[3, 5] = float("nan")
    for measure in (
        lambda: frechet_distance(x, y),
        lambda: compare([x, x], y[:64]),
        lambda: neighbours(x, y),
    ):
        with pytest.raises(UserError, match="reference images are not finite"):
            measure()


def test_precision_and_recall_of_the_same_of_far_and_of_part() -> None:
    x = gaussian(100, 2, 0)
    assert neighbours(x, x)[:2] == (1.0, 1.0)
    assert neighbours(x, x + 1000) == (0.0, 0.0, 0.0, 0.0)
    two_modes = torch.cat([x, x + 1000])
    assert neighbours(x, two_modes)[:2] == (1.0, 0.5)
    assert neighbours(two_modes, x)[:2] == (0.5, 1.0)


def test_a_collapsed_model_keeps_its_precision_and_loses_recall_and_coverage() -> None:
    """Its duplicates have balls of radius 0, which still hold the points themselves."""
    reference = gaussian(100, 2, 0)
    measured = neighbours(reference[:1].expand(50, 2), reference)
    assert measured[:2] == (1.0, 0.01)
    assert measured.coverage < 0.1
