"""Images as tensors: uint8 `[H, W, 3]` in files, float `[B, 3, H, W]` in [-1, 1] in networks."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from fewstep.data.shards import ImageRecord


def image_batch(images: Sequence[ImageRecord]) -> Tensor:
    """Stack images, float32 `[B, 3, H, W]` in [-1, 1]."""
    return from_uint8(torch.from_numpy(np.stack([image.pixels for image in images])))


def from_uint8(pixels: Tensor) -> Tensor:
    """uint8 `[B, H, W, 3]` to float32 `[B, 3, H, W]` in [-1, 1]."""
    return (pixels.float() / 127.5 - 1).permute(0, 3, 1, 2).contiguous()


def to_uint8(images: Tensor) -> Tensor:
    """float `[B, 3, H, W]` in [-1, 1] (clipped) to uint8 `[B, H, W, 3]`, rounded to nearest."""
    return ((images.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8).permute(0, 2, 3, 1).contiguous()
