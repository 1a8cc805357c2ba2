"""Rows of images as one PNG."""

from pathlib import Path

from PIL import Image
from torch import Tensor


def write_strip(path: Path, pixels: Tensor) -> None:
    """Images side by side, no gaps; uint8 `[G, H, W, 3]`."""
    Image.fromarray(pixels.permute(1, 0, 2, 3).flatten(1, 2).numpy()).save(path, format="png")
