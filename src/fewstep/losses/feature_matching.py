"""Feature matching: structural similarity (SSIM) of the feature maps of two images."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import conv2d

from fewstep.core.hardware import full_precision

WINDOW, DEVIATION = 11, 1.5
"""Side of the Gaussian window and its standard deviation, in positions (Wang et al. 2004, section III.C)."""
K_1, K_2 = 0.01, 0.03
"""The constants of SSIM are `(K L)^2`, L the dynamic range (Wang et al. 2004, eq. 7 and 9)."""
SMALLEST = 1e-6
"""Added to both, so that SSIM is smooth where a target is constant (as in DISTS, Ding et al. 2020, eq. 6)."""


def feature_matching(maps: Sequence[Tensor], targets: Sequence[Tensor]) -> Tensor:
    """`sum_l w_l (1 - SSIM(f_l(x), f_l(y)))` (SDXS, Song et al. 2024, eq. 10), `w_l` = 1 / number of maps.

    The paper writes `w_l SSIM`, by which it means the loss: equal maps give 0. maps: of the student's image,
    `[B, C_l, H_l, W_l]` each; targets: of the teacher's. Mean over the batch; range [0, 2]. Differentiable in
    `maps`.
    """
    each = [1 - ssim(x, y).mean() for x, y in zip(maps, targets, strict=True)]
    return torch.stack(each).mean()


def ssim(x: Tensor, y: Tensor) -> Tensor:
    """SSIM of each channel `[B, C]`, mean over the windows inside the map (Wang et al. 2004, eq. 13).

    x, y: `[B, C, H, W]`. A map smaller than the window is compared with a window of its own size.

    SSIM is defined for signals in [0, L]. Feature maps have any sign and range: both are shifted so that the
    channel of y begins at 0, and L is its range. Without the shift -y would have an SSIM of 1 with y, because
    the factors of means and of structure are both -1.
    """
    with full_precision():
        x, y = x.float(), y.detach().float()
        least = y.amin((2, 3), keepdim=True)
        x, y = x - least, y - least
        dynamic_range = y.amax((2, 3), keepdim=True)
        c_1, c_2 = ((k * dynamic_range).square() + SMALLEST for k in (K_1, K_2))
        mean_x, mean_y = window_mean(x), window_mean(y)
        variance_x = window_mean(x.square()) - mean_x.square()
        variance_y = window_mean(y.square()) - mean_y.square()
        covariance = window_mean(x * y) - mean_x * mean_y
        means = (2 * mean_x * mean_y + c_1) / (mean_x.square() + mean_y.square() + c_1)
        structure = (2 * covariance + c_2) / (variance_x + variance_y + c_2)
        return (means * structure).mean((2, 3))


def window_mean(x: Tensor) -> Tensor:
    """Gaussian-weighted mean over each window, `[B, C, H - h + 1, W - w + 1]`; h, w: sides of the window."""
    rows, columns = (gaussian(min(WINDOW, side)).to(x) for side in x.shape[-2:])
    each = x.reshape(-1, 1, *x.shape[2:])
    means = conv2d(conv2d(each, rows[None, None, :, None]), columns[None, None, None, :])
    return means.reshape(*x.shape[:2], *means.shape[2:])


def gaussian(length: int) -> Tensor:
    """Weights `[length]` of a Gaussian window of DEVIATION, float64, with sum 1."""
    places = torch.arange(length, dtype=torch.float64) - (length - 1) / 2
    return torch.softmax(-places.square() / (2 * DEVIATION**2), 0)
