"""Tones of an image, which reveal side effects of distillation and guidance."""

import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d

LUMA = (0.299, 0.587, 0.114)
"""Weights of red, green and blue in the luma (ITU-R BT.601)."""


def tones(x: Tensor) -> Tensor:
    """The four tones of each image, `[B, 4]`; x `[B, 3, H, W]` in [-1, 1].

    brightness: mean luma. saturation: mean of the largest minus the smallest channel. contrast: standard
    deviation of the luma. detail: root mean square of the luma minus its 3 x 3 mean, the energy of high
    frequencies.
    """
    rgb = (x.float().clamp(-1, 1) + 1) / 2
    luma = (rgb * torch.tensor(LUMA, device=x.device).reshape(3, 1, 1)).sum(1, keepdim=True)
    fine = (luma - avg_pool2d(luma, 3, stride=1, padding=1, count_include_pad=False)).square()
    return torch.stack(
        [
            luma.mean((1, 2, 3)),
            (rgb.amax(1) - rgb.amin(1)).mean((1, 2)),
            luma.std((1, 2, 3), unbiased=False),
            fine.mean((1, 2, 3)).sqrt(),
        ],
        dim=1,
    )
