"""Decoding: upright RGB squares out of whatever a file holds, or a typed reason why not."""

import io
import zlib

import numpy as np
import pytest
from PIL import Image

from fewstep.preparation.images import BadImage, decode, encode, fit

rng = np.random.default_rng(0)
RGB = rng.integers(0, 256, (24, 16, 3), np.uint8)
UNDO = {  # EXIF orientation -> how the sensor's image relates to the upright one
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.swapaxes(0, 1),
    6: lambda a: np.rot90(a, 1),
    7: lambda a: a[::-1, ::-1].swapaxes(0, 1),
    8: lambda a: np.rot90(a, -1),
}


def encoded(image: Image.Image, kind: str = "png", **options: object) -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def test_lossless_round_trip() -> None:
    assert np.array_equal(np.asarray(decode(encode(Image.fromarray(RGB)))), RGB)


@pytest.mark.parametrize("orientation", UNDO)
def test_every_exif_orientation_comes_out_upright(orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored = np.ascontiguousarray(UNDO[orientation](RGB))
    assert np.array_equal(np.asarray(decode(encoded(Image.fromarray(stored), exif=exif))), RGB)


def test_transparent_pixels_become_white() -> None:
    alpha = np.zeros((24, 16, 1), np.uint8)
    alpha[:12] = 255
    image = np.asarray(decode(encoded(Image.fromarray(np.concatenate([RGB, alpha], 2)))))
    assert np.array_equal(image[:12], RGB[:12])
    assert (image[12:] == 255).all()


def test_transparent_palette_becomes_white() -> None:
    palette = Image.fromarray(RGB).quantize(8)
    image = np.asarray(decode(encoded(palette, transparency=0)))
    assert (image[np.asarray(palette) == 0] == 255).all()


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "CMYK", "RGBA"])
def test_every_mode_becomes_rgb(mode: str) -> None:
    kind = "jpeg" if mode == "CMYK" else "png"
    assert decode(encoded(Image.fromarray(RGB).convert(mode), kind)).mode == "RGB"


def test_sixteen_bit_gray_is_scaled_not_clipped() -> None:
    gray = np.arange(0, 65536, 256, dtype=np.uint16).reshape(16, 16)
    image = np.asarray(decode(encoded(Image.fromarray(gray))))
    assert np.array_equal(image, np.repeat((gray >> 8).astype(np.uint8)[..., None], 3, 2))


def test_resizing_is_antialiased_and_centred() -> None:
    stripes = np.zeros((64, 128, 3), np.uint8)
    stripes[:, ::2] = 255
    stripes[:, :32] = stripes[:, 96:] = (255, 0, 0)
    square = np.asarray(fit(Image.fromarray(stripes), 8)).astype(int)
    assert square.shape == (8, 8, 3)
    assert np.abs(square - 127.5).max() < 20, "the red margins are cut off, the stripes average to gray"


def test_square_at_resolution_is_untouched() -> None:
    square = Image.fromarray(RGB[:16])
    assert fit(square, 16).tobytes() == square.tobytes()


@pytest.mark.parametrize("kind", ["png", "jpeg", "webp"])
def test_truncated_file(kind: str) -> None:
    whole = encoded(Image.fromarray(RGB), kind)
    with pytest.raises(BadImage) as caught:
        decode(whole[: len(whole) // 2])
    assert caught.value.reason == "corrupt image"


@pytest.mark.parametrize("data", [b"", b"not a picture", encoded(Image.fromarray(RGB), "ppm")])
def test_foreign_bytes(data: bytes) -> None:
    with pytest.raises(BadImage, match=r"^corrupt image: no jpeg, png or webp file$"):
        decode(data)


def test_damage_never_escapes_as_another_error() -> None:
    for kind in ("png", "jpeg", "webp"):
        whole = encoded(Image.fromarray(RGB), kind)
        for i in range(0, len(whole), max(1, len(whole) // 150)):
            try:
                decode(whole[:i] + bytes([whole[i] ^ 0x5A]) + whole[i + 1 :])
            except BadImage as error:
                assert "0x" not in error.detail, "a memory address would make the list vary"


@pytest.mark.parametrize("side", [10_000, 20_000])
def test_decompression_bomb_is_refused_by_its_header(side: int) -> None:
    bomb = bytearray(encoded(Image.fromarray(RGB)))
    bomb[16:24] = side.to_bytes(4, "big") * 2
    bomb[29:33] = zlib.crc32(bytes(bomb[12:29])).to_bytes(4, "big")
    with pytest.raises(BadImage, match=f"^decompression bomb: .*{side * side} pixels"):
        decode(bytes(bomb))
