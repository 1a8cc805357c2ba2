"""Reads the filtered rows in a PNG's IDAT: whether all are present, and 16-bit colour without loss."""

import io
import struct
import zlib
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from fewstep.preparation.containers import png_chunk, png_chunks
from fewstep.preparation.signatures import PNG_SIGNATURE

CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}  # by colour type
WHOLE = ((0, 0, 1, 1),)
ADAM7 = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2))
"""Per pass: x and y of its first pixel, steps in x and y."""


@dataclass(frozen=True)
class Stored:
    """IHDR's data and the joined IDAT of a PNG."""

    header: bytes
    compressed: bytes

    @classmethod
    def of(cls, encoded: bytes) -> "Stored":
        """Parse a PNG. Raises struct.error or KeyError, here or in later calls, for an invalid header."""
        chunks = list(png_chunks(encoded))
        header = next(body for kind, body, _ in chunks if kind == b"IHDR")
        return cls(header, b"".join(chunk[8:-4] for kind, _, chunk in chunks if kind == b"IDAT"))

    def passes(self) -> list[tuple[int, int]]:
        """(rows, bytes of a row with its filter byte) of each pass that has pixels."""
        width, height, depth, colour_type, _, _, interlaced = struct.unpack(">IIBBBBB", self.header[:13])
        bits = depth * CHANNELS[colour_type]
        sizes = [
            (len(range(y, height, dy)), len(range(x, width, dx)))
            for x, y, dx, dy in (ADAM7 if interlaced else WHOLE)
        ]
        return [(high, 1 + (wide * bits + 7) // 8) for high, wide in sizes if high and wide]

    def size(self) -> int:
        """Bytes of all rows."""
        return sum(rows * length for rows, length in self.passes())


def complete(encoded: bytes) -> bool:
    """Whether IDAT inflates to all rows. At most 64 KiB of them are in memory at a time."""
    stored = Stored.of(encoded)
    stream, missing, rest = zlib.decompressobj(), stored.size(), stored.compressed
    while missing > 0 and not stream.eof:
        rows = stream.decompress(rest, 2**16)
        rest = stream.unconsumed_tail
        missing -= len(rows)
        if not rows and not rest:
            break
    return missing <= 0


def sixteen_bit_rgb(encoded: bytes) -> NDArray[np.uint16]:
    """The pixels `[height, width, 3]` of a complete 16-bit RGB PNG, where Pillow keeps only the high bytes.

    PNG filters process each byte of a pixel separately, so the filtered rows of one channel are those of a
    16-bit gray PNG, which Pillow decodes in full.
    """
    stored = Stored.of(encoded)
    rows = np.frombuffer(zlib.decompressobj().decompress(stored.compressed, stored.size()), np.uint8)
    planes: list[list[bytes]] = [[], [], []]
    start = 0
    for high, length in stored.passes():
        some = rows[start : start + high * length].reshape(high, length)
        start += high * length
        pixels = some[:, 1:].reshape(high, -1, 3, 2)
        for channel, plane in enumerate(planes):
            plane.append(np.concatenate([some[:, :1], pixels[:, :, channel].reshape(high, -1)], 1).tobytes())
    header = png_chunk(b"IHDR", stored.header[:9] + b"\0" + stored.header[10:13])
    grays = [
        PNG_SIGNATURE
        + header
        + png_chunk(b"IDAT", zlib.compress(b"".join(plane), 1))
        + png_chunk(b"IEND", b"")
        for plane in planes
    ]
    return np.stack([np.asarray(Image.open(io.BytesIO(gray))).astype(np.uint16) for gray in grays], -1)
