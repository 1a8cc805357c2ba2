"""Pillow's antialiased bicubic resize on tensors, for any device; exact to 8 bits, or differentiable.

Both are two matrix products, so that the forward and the backward pass are deterministic on GPUs too.
"""

from functools import cache

import torch
from torch import Tensor
from torch.nn.functional import interpolate

ONE = 2.0**22
"""1 in the fixed-point weights of Pillow's 8-bit resize."""


def resize_uint8(x: Tensor, side: int) -> Tensor:
    """Result of `Image.resize((side, side), BICUBIC)`: integers 0 to 255 as float32 `[B, 3, side, side]`.

    x: integers 0 to 255, `[B, 3, H, W]`, of any dtype. Pillow resizes and rounds one direction after
    the other. Their order depends on the shape where H is not W, so only square images match bit for bit.
    """
    rows, columns = ((filter_matrix(n, side) * ONE).round().to(x.device) for n in x.shape[-2:])
    # Sums of integers below 2^53: float64 holds them exactly, in any order of summation.
    return fixed_to_uint8(rows @ fixed_to_uint8(x.double() @ columns.T)).float()


def resize(x: Tensor, side: int) -> Tensor:
    """The same without rounding and clipping, `[B, 3, side, side]` in the scale of x; differentiable."""
    rows, columns = (filter_matrix(n, side).to(x) for n in x.shape[-2:])
    return rows @ x @ columns.T


@cache
def filter_matrix(length: int, side: int) -> Tensor:
    """The filter from `length` to `side` samples, float64 `[side, length]`: the resized identity matrix."""
    identity = torch.eye(length, dtype=torch.float64)[None, None]
    return interpolate(identity, (side, length), mode="bicubic", antialias=True)[0, 0]


def fixed_to_uint8(x: Tensor) -> Tensor:
    """Fixed-point numbers rounded to integers, halves up, and clipped to 0 to 255."""
    return (x / ONE + 0.5).floor().clamp(0, 255)
