"""Image files made byte by byte, and their colours computed apart from the code under test."""

import io
import struct
import zlib

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image, ImageCms

from fewstep.preparation.images import BadImage, decode

Pixels = NDArray[np.uint8]

SIDE = 48
Y, X = np.mgrid[0:SIDE, 0:SIDE]
FIELD = np.stack([40 + 3 * X, 200 - 3 * Y, 60 + X + Y], -1).astype(np.uint8)
WIDE = np.ascontiguousarray(FIELD[:32])  # 48 x 32: a turn shows
SRGB_BYTES = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
D50 = np.array([0.9642, 1.0, 0.8249])
PROPHOTO = np.array([(0.7977, 0.2880, 0.0), (0.1352, 0.7119, 0.0), (0.0313, 0.0001, 0.8249)]).T
ADOBE = np.array([(0.6097, 0.3111, 0.0195), (0.2053, 0.6257, 0.0609), (0.1492, 0.0632, 0.7446)]).T
SRGB = np.array([(0.4360, 0.2225, 0.0139), (0.3851, 0.7169, 0.0971), (0.1431, 0.0606, 0.7141)]).T
LOSSLESS = {"png": {}, "webp": {"lossless": True, "exact": True}}


def saved(image: Image.Image | Pixels, kind: str = "png", **options: object) -> bytes:
    stream = io.BytesIO()
    opened = image if isinstance(image, Image.Image) else Image.fromarray(image)
    opened.save(stream, kind, **({"quality": 95, "subsampling": 0} if kind == "jpeg" else {}) | options)
    return stream.getvalue()


def decoded(data: bytes) -> Pixels:
    image = decode(data)
    assert image.mode == "RGB"
    return np.asarray(image)


def assert_close(actual: Pixels, expected: NDArray[np.generic], levels: float = 2) -> None:
    assert actual.shape == expected.shape
    assert np.abs(actual.astype(float) - expected.astype(float)).max() <= levels


def refusal(data: bytes) -> BadImage:
    with pytest.raises(BadImage) as caught:
        decode(data)
    return caught.value


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def raw_png(
    colour_type: int, depth: int, rows: list[bytes], width: int, *before: bytes, stream: bytes | None = None
) -> bytes:
    """A PNG of packed rows, with `before` ahead of IDAT; `stream`: its IDAT, if not the rows deflated."""
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, len(rows), depth, colour_type, 0, 0, 0))
    data = zlib.compress(b"".join(b"\0" + row for row in rows)) if stream is None else stream
    return b"\x89PNG\r\n\x1a\n" + header + b"".join(before) + chunk(b"IDAT", data) + chunk(b"IEND", b"")


def png_with(data: bytes, *chunks: bytes) -> bytes:
    return data[:33] + b"".join(chunks) + data[33:]


def png_ending_with(data: bytes, *chunks: bytes) -> bytes:
    return data[:-12] + b"".join(chunks) + data[-12:]


def jpeg_with(data: bytes, marker: int, payload: bytes) -> bytes:
    return data[:2] + bytes([0xFF, marker]) + struct.pack(">H", len(payload) + 2) + payload + data[2:]


def webp_with(data: bytes, kind: bytes, payload: bytes) -> bytes:
    """An extended WebP of a simple one, and one more chunk."""
    width, height = Image.open(io.BytesIO(data)).size
    flags = {b"EXIF": 8, b"XMP ": 4, b"ICCP": 32}[kind]
    canvas = struct.pack("<I", width - 1)[:3] + struct.pack("<I", height - 1)[:3]
    extra = kind + struct.pack("<I", len(payload)) + payload + b"\0" * (len(payload) % 2)
    body = b"WEBPVP8X" + struct.pack("<IB3x", 10, flags) + canvas
    body += extra + data[12:] if kind == b"ICCP" else data[12:] + extra
    return b"RIFF" + struct.pack("<I", len(body)) + body


def icc(space: bytes, curve: bytes, matrix: NDArray[np.float64] | None = None) -> bytes:
    """A version 2 profile; `matrix`: D50 XYZ of the primaries as columns."""

    def xyz(values: NDArray[np.float64]) -> bytes:
        return b"XYZ " + bytes(4) + struct.pack(">3i", *(round(float(v) * 65536) for v in values))

    tags = {b"wtpt": xyz(D50)}
    if matrix is None:
        tags[b"kTRC"] = curve
    else:
        for name, column in zip((b"r", b"g", b"b"), matrix.T, strict=True):
            tags |= {name + b"XYZ": xyz(column), name + b"TRC": curve}
    table, body = b"", b""
    for name, data in tags.items():
        table += name + struct.pack(">II", 132 + 12 * len(tags) + len(body), len(data))
        body += data + bytes(-len(data) % 4)
    header = struct.pack(">I4xI", 132 + len(table) + len(body), 0x02100000) + b"mntr" + space + b"XYZ "
    header += bytes(12) + b"acsp" + bytes(28) + xyz(D50)[8:]
    return header.ljust(128, b"\0") + struct.pack(">I", len(tags)) + table + body


def gamma_curve(gamma: float) -> bytes:
    return b"curv" + bytes(4) + struct.pack(">IH", 1, round(gamma * 256)) + b"\0\0"


def cmyk_icc() -> bytes:
    """A LUT profile of ideal inks that differs from Pillow's: paper white, magenta ink counts half."""
    grid = np.stack(np.meshgrid(*[[0.0, 1.0]] * 4, indexing="ij"), -1).reshape(-1, 4)
    linear = (1 - grid[:, :3] * [1, 0.5, 1]) * (1 - grid[:, 3:])
    xyz = linear @ SRGB.T
    lab = lab_of(xyz)
    stored = np.stack([lab[:, 0] * 652.8, (lab[:, 1] + 128) * 256, (lab[:, 2] + 128) * 256], -1)
    table = np.clip(np.round(stored), 0, 65535).astype(">u2").tobytes()
    identity = struct.pack(">2H", 0, 65535)
    a2b = (
        b"mft2" + bytes(4) + bytes([4, 3, 2, 0]) + struct.pack(">9i", *(65536 * np.eye(3, dtype=int)).ravel())
    )
    a2b += struct.pack(">2H", 2, 2) + identity * 4 + table + identity * 3
    white = b"XYZ " + bytes(4) + struct.pack(">3i", *np.round(D50 * 65536).astype(int).tolist())
    tags = {b"A2B0": a2b, b"A2B1": a2b, b"wtpt": white}
    directory, body = b"", b""
    for name, data in tags.items():
        directory += name + struct.pack(">II", 132 + 12 * len(tags) + len(body), len(data))
        body += data + bytes(-len(data) % 4)
    header = struct.pack(">I4xI", 132 + len(directory) + len(body), 0x02100000) + b"prtrCMYKLab "
    header += bytes(12) + b"acsp" + bytes(28) + white[8:]
    return header.ljust(128, b"\0") + struct.pack(">I", len(tags)) + directory + body


def lab_of(xyz: NDArray[np.float64]) -> NDArray[np.float64]:
    t = xyz / D50
    f = np.where(t > 216 / 24389, np.cbrt(t), (24389 / 27 * t + 16) / 116)
    return np.stack([116 * f[:, 1] - 16, 500 * (f[:, 0] - f[:, 1]), 200 * (f[:, 1] - f[:, 2])], -1)


def srgb_of(linear: NDArray[np.float64]) -> NDArray[np.float64]:
    """Levels 0 ... 255 of linear sRGB light."""
    light = linear.clip(0, 1)
    return 255 * np.where(light <= 0.0031308, 12.92 * light, 1.055 * light ** (1 / 2.4) - 0.055)


def by_matrix(pixels: Pixels, matrix: NDArray[np.float64], gamma: float) -> NDArray[np.float64]:
    light = (pixels / 255) ** (round(gamma * 256) / 256)
    return srgb_of(light @ matrix.T @ np.linalg.inv(SRGB).T)


SRGB_CHROMATICITIES = (0.3127, 0.329, 0.64, 0.33, 0.30, 0.60, 0.15, 0.06)
ADOBE_CHROMATICITIES = (0.3127, 0.329, 0.64, 0.33, 0.21, 0.71, 0.15, 0.06)
P3_CHROMATICITIES = (0.3127, 0.329, 0.68, 0.32, 0.265, 0.69, 0.15, 0.06)


def gama(gamma: float) -> bytes:
    return chunk(b"gAMA", struct.pack(">I", round(gamma * 100_000)))


def chrm(chromaticities: tuple[float, ...]) -> bytes:
    return chunk(b"cHRM", struct.pack(">8I", *(round(v * 100_000) for v in chromaticities)))


GOOD = icc(b"RGB ", gamma_curve(2.2), ADOBE)


VALUES = (np.arange(32 * 32).reshape(32, 32) * 64).astype(">u2")


def rows16(*channels: NDArray[np.generic]) -> list[bytes]:
    return [row.astype(">u2").tobytes() for row in np.stack(channels, -1)]


def tiff(*entries: bytes, order: str = "<") -> bytes:
    start = {"<": b"II*\0", ">": b"MM\0*"}[order]
    return start + struct.pack(order + "IH", 8, len(entries)) + b"".join(entries) + bytes(4)


def entry(tag: int, kind: int, count: int, value: bytes, order: str = "<") -> bytes:
    return struct.pack(order + "HHI", tag, kind, count) + value.ljust(4, b"\0")


TURN = entry(0x0112, 3, 1, b"\6\0")


ADAM7 = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2))
