"""Images of 16 bits and of fewer than 8, with whatever transparency."""

import struct
import zlib

import numpy as np
import pytest

from tests.images import (
    ADAM7,
    SRGB_BYTES,
    VALUES,
    assert_close,
    chunk,
    decoded,
    gama,
    gamma_curve,
    icc,
    raw_png,
    rows16,
    srgb_of,
)


@pytest.mark.parametrize(
    "chunks",
    [
        [],
        [chunk(b"tRNS", struct.pack(">H", 513))],
        [chunk(b"tRNS", b"\1")],
        [gama(0.45455)],
        [
            gama(0.45455),
            chunk(b"tRNS", struct.pack(">H", 513)),
            chunk(b"bKGD", b"\0\0"),
            chunk(b"sBIT", b"\x0c"),
        ],
        [chunk(b"iCCP", b"x\0\0" + zlib.compress(SRGB_BYTES))],
    ],
    ids=["plain", "tRNS", "tRNS cut", "gAMA", "several", "RGB profile"],
)
def test_sixteen_bit_gray(chunks: list[bytes]) -> None:
    pixels = decoded(raw_png(0, 16, rows16(VALUES), 32, *chunks))
    assert np.array_equal(pixels, np.repeat((VALUES >> 8).astype(np.uint8)[..., None], 3, -1))


def test_sixteen_bit_gray_with_a_profile() -> None:
    profile = chunk(b"iCCP", b"x\0\0" + zlib.compress(icc(b"GRAY", gamma_curve(1.8))))
    expected = srgb_of(((VALUES >> 8) / 255) ** (round(1.8 * 256) / 256))
    assert_close(decoded(raw_png(0, 16, rows16(VALUES), 32, profile))[..., 1], expected)


def test_only_the_very_value_is_transparent_in_sixteen_bit_gray() -> None:
    pixels = decoded(raw_png(0, 16, rows16(VALUES), 32, chunk(b"tRNS", struct.pack(">H", 640))))
    expected = np.where(VALUES == 640, 255, VALUES >> 8)
    assert (VALUES == 640).sum() == 1 and (VALUES >> 8 == 640 >> 8).sum() > 1
    assert np.array_equal(pixels[..., 2], expected)


@pytest.mark.parametrize("key", [(0, 1, 2), (640, 65535 - 640, 0)])
def test_only_the_very_colour_is_transparent_in_sixteen_bit_rgb(key: tuple[int, int, int]) -> None:
    rgb = np.stack([VALUES, 65535 - VALUES, np.zeros_like(VALUES)], -1)
    rgb[0, 0] = 0  # near the first key, and of the same high bytes
    pixels = decoded(
        raw_png(2, 16, rows16(*np.moveaxis(rgb, -1, 0)), 32, chunk(b"tRNS", struct.pack(">HHH", *key)))
    )
    expected = (rgb >> 8).astype(np.uint8)
    expected[(rgb == key).all(-1)] = 255
    assert (expected == 255).all(-1).any() == (key[0] == 640)
    assert np.array_equal(pixels, expected)


def test_interlaced_sixteen_bit_rgb_with_a_transparent_colour() -> None:
    rgb = np.stack([VALUES, VALUES[::-1], VALUES.T], -1)[:21, :13]
    raw = b""
    for x, y, dx, dy in ADAM7:
        raw += b"".join(b"\0" + row.astype(">u2").tobytes() for row in rgb[y::dy, x::dx])
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 13, 21, 16, 2, 0, 0, 1))
    key = chunk(b"tRNS", struct.pack(">HHH", *rgb[5, 7].tolist()))
    data = (
        raw_png(2, 16, [], 13)[:8] + header + key + chunk(b"IDAT", zlib.compress(raw)) + chunk(b"IEND", b"")
    )
    expected = (rgb >> 8).astype(np.uint8)
    expected[5, 7] = 255
    assert np.array_equal(decoded(data), expected)


@pytest.mark.parametrize("alpha", [65535, 32768])
def test_sixteen_bit_alpha(alpha: int) -> None:
    opacity, share = np.full_like(VALUES, alpha), (alpha >> 8) / 255
    expected = (VALUES >> 8) * share + 255 * (1 - share)
    gray = decoded(raw_png(4, 16, rows16(VALUES, opacity), 32))
    rgb = decoded(raw_png(6, 16, rows16(VALUES, VALUES, VALUES, opacity), 32))
    assert_close(gray, np.repeat(expected[..., None], 3, -1), 1)
    assert np.array_equal(gray, rgb)


@pytest.mark.parametrize("depth", [1, 2, 4, 8])
@pytest.mark.parametrize("high_bits", [0, 0x0100], ids=["", "bits above the depth set"])
def test_shallow_gray_with_a_transparent_value(depth: int, high_bits: int) -> None:
    count = 2**depth
    values = np.arange(256).reshape(1, 256) % count
    bits = (values[..., None] >> np.arange(depth)[::-1]) & 1
    rows = [np.packbits(bits.reshape(-1)).tobytes()]
    expected = values * 255 // (count - 1)
    opaque = decoded(raw_png(0, depth, rows, 256))
    assert np.array_equal(opaque[..., 0], expected)
    for key in {0, count // 2, count - 1}:
        pixels = decoded(raw_png(0, depth, rows, 256, chunk(b"tRNS", struct.pack(">H", key | high_bits))))
        assert np.array_equal(pixels[..., 0], np.where(values == key, 255, expected))


@pytest.mark.parametrize("depth", [1, 2, 4, 8])
def test_palette_with_alpha_values(depth: int) -> None:
    count = 2**depth
    values = np.arange(256).reshape(1, 256) % count
    bits = (values[..., None] >> np.arange(depth)[::-1]) & 1
    palette = np.arange(3 * count, dtype=np.uint8).reshape(count, 3)
    alphas = (np.arange(count) * 255 // (count - 1)).astype(np.uint8)[: max(1, count - 1)]
    data = raw_png(
        3, depth, [np.packbits(bits.reshape(-1)).tobytes()], 256, chunk(b"PLTE", palette.tobytes()),
        chunk(b"tRNS", alphas.tobytes()),
    )  # fmt: skip
    share = np.append(alphas, 255)[:count][values][..., None] / 255
    assert_close(decoded(data), palette[values] * share + 255 * (1 - share), 1)
