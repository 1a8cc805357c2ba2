"""Position-sensitive features: the image itself, averaged over an 8 x 8 grid; no weights."""

from typing import Self

import torch
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d

GRID = 8
WIDTH = 3 * GRID * GRID


def layout(x: Tensor) -> Tensor:
    """Mean colour of each cell of an 8 x 8 grid, `[B, 192]` in [-1, 1]; x `[B, 3, H, W]` in [-1, 1]."""
    return cells(x).flatten(1)


def cells(x: Tensor) -> Tensor:
    """Area average `[B, 3, 8, 8]`; cells overlap by a pixel where 8 does not divide the image's side."""
    return adaptive_avg_pool2d(x, GRID)


class Layout:
    """`layout` as a feature network, to complement one that is invariant to position."""

    name = "layout"
    kernel = "polynomial"
    channel_weights = None

    def features(self, x: Tensor) -> Tensor:
        """`layout(x)`, `[B, 192]`."""
        return layout(x)

    def maps(self, x: Tensor) -> list[Tensor]:
        """The grid of mean colours, `[B, 3, 8, 8]`."""
        return [cells(x)]

    def to(self, device: torch.device) -> Self:
        """Itself: there are no weights to move."""
        return self
