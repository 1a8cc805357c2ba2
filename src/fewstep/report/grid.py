"""The images of one row of the grid, cut from its strip."""

import base64
import io
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from fewstep.core.errors import UserError

SIDE = 192
"""Largest side of an image in the page, pixels: sharp at a column's width; limits the page's size."""


@dataclass(frozen=True)
class Row:
    """One image per column, as data URIs. `reduced`: they were downscaled; else shown unsmoothed."""

    images: tuple[str, ...]
    reduced: bool


def cut(strip: Path) -> Row:
    """The row of `strip`, an image file with any number of squares side by side and no gaps.

    Raises UserError when it is anything else.
    """
    try:
        with Image.open(strip) as file:
            image = file.convert("RGB")
    except OSError as error:
        raise UserError(
            f"{strip}: not readable as an image ({error}); `dvc repro evaluate` makes it"
        ) from None
    side = image.height
    if image.width % side:
        raise UserError(
            f"{strip}: {image.width} x {side} pixels are no row of squares; run `dvc repro evaluate`"
        )
    squares = (image.crop((left, 0, left + side, side)) for left in range(0, image.width, side))
    return Row(tuple(data_uri(square) for square in squares), reduced=side > SIDE)


def data_uri(image: Image.Image) -> str:
    """The image, at most `SIDE` large, as PNG inside a URI."""
    image.thumbnail((SIDE, SIDE), Image.Resampling.LANCZOS)
    encoded = io.BytesIO()
    image.save(encoded, format="png", optimize=True)
    return "data:image/png;base64," + base64.b64encode(encoded.getvalue()).decode()
