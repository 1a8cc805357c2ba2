"""Feature matching: SSIM against other computations, and with each kind of feature network."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.ndimage import correlate1d  # type: ignore[import-untyped]
from skimage.metrics import structural_similarity

from fewstep.artifacts.manifest import Manifest
from fewstep.features.attribute_classifier import AttributeClassifier
from fewstep.features.network import open_features
from fewstep.losses.feature_matching import feature_matching, ssim
from fewstep.sources.shapes import LABELS
from tests.pipelines import vae
from tests.unit.test_features_transformers import make


def maps_of(seed: int, side: tuple[int, int], scale: float = 1.0) -> np.ndarray:
    """Two samples of three channels, correlated in space."""
    noise = np.random.default_rng(seed).standard_normal((2, 3, *side))
    return scale * correlate1d(correlate1d(noise, [1, 2, 1], axis=2), [1, 2, 1], axis=3)


@pytest.mark.parametrize(("side", "offset"), [((24, 17), 0.0), ((11, 11), 0.0), ((24, 17), 300.0)])
def test_ssim_is_that_of_scikit_image(side: tuple[int, int], offset: float) -> None:
    """On maps that begin at 0. With a range of hundreds, the constant that DISTS adds is negligible."""
    y = maps_of(0, side, 100.0) + offset
    x = 0.7 * y + maps_of(1, side, 50.0) + 20
    similarity = ssim(torch.from_numpy(x), torch.from_numpy(y))
    for i in range(2):
        for j in range(3):
            expected = structural_similarity(  # type: ignore[no-untyped-call]
                x[i, j] - y[i, j].min(),
                y[i, j] - y[i, j].min(),
                data_range=y[i, j].max() - y[i, j].min(),
                gaussian_weights=True,
                sigma=1.5,
                use_sample_covariance=False,
            )
            assert float(similarity[i, j]) == pytest.approx(expected, abs=2e-5)


@pytest.mark.parametrize("side", [(5, 3), (2, 20), (1, 1)])
def test_a_small_map_has_a_window_of_its_size(side: tuple[int, int]) -> None:
    x, y = maps_of(1, side), maps_of(0, side)
    x, y = x - y.min((2, 3), keepdims=True), y - y.min((2, 3), keepdims=True)
    weights = [np.exp(-((np.arange(n) - (n - 1) / 2) ** 2) / 4.5) for n in (min(11, s) for s in side)]
    kernel = np.multiply.outer(*(each / each.sum() for each in weights))
    windows = np.lib.stride_tricks.sliding_window_view
    m_x, m_y, m_xx, m_yy, m_xy = (
        (windows(f, kernel.shape, (2, 3)) * kernel).sum((-2, -1)) for f in (x, y, x * x, y * y, x * y)
    )
    spread = y.max((2, 3), keepdims=True)
    c_1, c_2 = (0.01 * spread) ** 2 + 1e-6, (0.03 * spread) ** 2 + 1e-6
    expected = (2 * m_x * m_y + c_1) / (m_x**2 + m_y**2 + c_1)
    expected *= (2 * (m_xy - m_x * m_y) + c_2) / (m_xx - m_x**2 + m_yy - m_y**2 + c_2)
    similarity = ssim(torch.from_numpy(x), torch.from_numpy(y))
    assert np.allclose(similarity.numpy(), expected.mean((2, 3)), atol=1e-4)


def test_equal_maps_have_no_loss_and_opposite_ones_much() -> None:
    maps = [torch.from_numpy(maps_of(seed, (13, 12))) for seed in (0, 1)]
    centred = [x - x.mean((2, 3), keepdim=True) for x in maps]
    assert float(feature_matching(maps, maps)) == 0
    assert float(feature_matching(maps, centred)) > 0
    constant = [torch.zeros(1, 2, 9, 9)]
    assert float(feature_matching(constant, constant)) == 0
    assert float(feature_matching([-x for x in maps], maps)) > 1.5


def test_the_gradient_of_feature_matching() -> None:
    """By finite differences in float32; also finite where a map is constant. The target receives none."""
    x, y = (torch.from_numpy(maps_of(seed, (12, 13))).float() for seed in (0, 1))
    x, y = x.requires_grad_(), y.requires_grad_()
    (gradient,) = torch.autograd.grad(feature_matching([x], [y]), x)
    direction = torch.from_numpy(maps_of(2, (12, 13))).float()
    with torch.no_grad():
        ends = [float(feature_matching([x + step * direction], [y])) for step in (-1e-2, 1e-2)]
    assert float((gradient * direction).sum()) == pytest.approx((ends[1] - ends[0]) / 2e-2, rel=1e-2)
    (none,) = torch.autograd.grad(feature_matching([x], [y]), y, allow_unused=True)
    assert none is None
    flat = torch.zeros(1, 2, 9, 9, requires_grad=True)
    (gradient,) = torch.autograd.grad(feature_matching([flat], [torch.zeros(1, 2, 9, 9)]), flat)
    assert gradient.isfinite().all()


def classifier(folder: Path) -> Path:
    AttributeClassifier(LABELS, widths=(8, 16), feature_dim=10).save(folder, 32, {})
    return folder


def autoencoder(folder: Path) -> Path:
    vae().save_pretrained(folder / "vae")
    Manifest.seal(folder, "teacher", {}, {})
    return folder


def vision(folder: Path) -> Path:
    return make("dinov2", folder)


@pytest.mark.parametrize("kind", [classifier, autoencoder, vision])
def test_any_feature_network_serves(kind: Callable[[Path], Path], tmp_path: Path) -> None:
    """The chain's classifier, the autoencoder's encoder and a vision network by local path."""
    torch.manual_seed(0)
    network = open_features(kind(tmp_path / "features"))
    x, y = torch.rand(2, 2, 3, 32, 32) * 2 - 1
    x.requires_grad_()
    loss = feature_matching(network.maps(x), network.maps(y))
    assert 0 < float(loss.detach()) < 2
    (gradient,) = torch.autograd.grad(loss, x)
    assert gradient.isfinite().all() and gradient.abs().amax((1, 2, 3)).min() > 0
    assert float(feature_matching(network.maps(y), network.maps(y))) == 0
