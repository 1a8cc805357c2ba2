"""Reads the orientation in EXIF or XMP without a full parser, so that no other tag can cause an error."""

import re
import struct
from collections.abc import Iterable

from PIL import Image

UPRIGHT = 1
TRANSPOSE = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
TAG, XMP_TAG = 0x0112, re.compile(rb"""tiff:Orientation\s*(?:=\s*["']|>)\s*([1-8])\s*["'<]""")
INTEGERS = {1: "B", 3: "H", 4: "I", 6: "b", 8: "h", 9: "i"}  # TIFF type -> struct code


def upright(image: Image.Image, exif: Iterable[bytes], xmp: Iterable[bytes]) -> Image.Image:
    """`image` turned by the first block that has a valid orientation, EXIF before XMP.

    An orientation outside 1 ... 8, of a non-integer type, or with several values is ignored.
    """
    read = [*map(exif_orientation, exif), *map(xmp_orientation, xmp)]
    orientation = next((value for value in read if value is not None), UPRIGHT)
    return image.transpose(TRANSPOSE[orientation]) if orientation != UPRIGHT else image


def exif_orientation(block: bytes) -> int | None:
    """The orientation in the first directory of a TIFF structure (TIFF 6.0, section 2), or None."""
    while block.startswith(b"Exif\0\0"):
        block = block[6:]
    order = {b"II": "<", b"MM": ">"}.get(block[:2])
    if order is None:
        return None
    try:
        (start,) = struct.unpack_from(order + "I", block, 4)
        (count,) = struct.unpack_from(order + "H", block, start)
        for entry in range(start + 2, start + 2 + 12 * count, 12):
            tag, kind, values = struct.unpack_from(order + "HHI", block, entry)
            if tag == TAG and values == 1 and kind in INTEGERS:
                (value,) = struct.unpack_from(order + INTEGERS[kind], block, entry + 8)
                return value if 1 <= value <= 8 else None
    except struct.error:  # the directory is truncated
        pass
    return None


def xmp_orientation(block: bytes) -> int | None:
    """The orientation in an XMP packet, whatever its encoding (ASCII characters of UTF-8 or UTF-16)."""
    tag = XMP_TAG.search(block.replace(b"\0", b""))
    return int(tag[1]) if tag else None
