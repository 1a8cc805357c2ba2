"""Formats are recognised by content; what is not decoded is refused by name."""

import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from fewstep.preparation.images import BadImage, decode
from tests.images import (
    FIELD,
    GOOD,
    P3_CHROMATICITIES,
    SIDE,
    SRGB_BYTES,
    TURN,
    VALUES,
    chrm,
    chunk,
    gama,
    jpeg_with,
    png_with,
    raw_png,
    refusal,
    rows16,
    saved,
    tiff,
    webp_with,
)


@pytest.mark.parametrize("kind", ["jpeg", "png", "webp"])
def test_format_is_recognised_by_content(kind: str) -> None:
    assert decode(saved(FIELD, kind)).size == (SIDE, SIDE)


def box(*brands: bytes) -> bytes:
    data = b"ftyp" + brands[0] + bytes(4) + b"".join(brands[1:])
    return struct.pack(">I", len(data) + 4) + data + bytes(200)


REFUSED = {
    "a HEIC file": [box(b"heic"), box(b"mif1", b"mif1", b"heic"), box(b"heix", b"mif1")],
    "an AVIF file": [saved(FIELD, "avif"), box(b"avis"), box(b"mif1", b"miaf", b"avif")],
    "a HEIF file": [box(b"mif1", b"miaf")],
    "a GIF file": [saved(FIELD, "gif")],
    "a BMP file": [saved(FIELD, "bmp")],
    "a TIFF file": [saved(FIELD, "tiff"), b"MM\0*" + bytes(20)],
    "a JPEG 2000 file": [saved(FIELD, "jpeg2000")],
    "a JPEG XL file": [b"\xff\x0a" + bytes(20)],
}


@pytest.mark.parametrize("name", REFUSED)
def test_other_image_formats_are_refused_by_name(name: str) -> None:
    for data in REFUSED[name]:
        error = refusal(data)
        assert (error.reason, error.detail) == ("format not decoded", name)


NO_IMAGES = {
    "an HTML page": [
        b"<!DOCTYPE html><html></html>",
        b"\xef\xbb\xbf\n <HTML>",
        b"<?xml version='1.0'?><html/>",
    ],
    "a git-LFS pointer": [b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 12\n"],
    "an SVG file": [b"<svg xmlns='http://www.w3.org/2000/svg'/>"],
    "no jpeg, png or webp file": [
        b"",
        b"P6 1 1 255\n000",
        bytes(100),
        b"RIFF\0\0\0\0WAVEfmt ",
        b"BM and text " * 5,
    ],
}


@pytest.mark.parametrize("name", NO_IMAGES)
def test_files_that_are_no_images(name: str) -> None:
    for data in NO_IMAGES[name]:
        error = refusal(data)
        assert (error.reason, error.detail) == ("corrupt image", name)


@pytest.mark.parametrize("size", [(1, 300), (300, 1), (1, 1)])
@pytest.mark.parametrize("kind", ["jpeg", "png", "webp"])
def test_lines(size: tuple[int, int], kind: str) -> None:
    data = saved(Image.new("RGB", size, (200, 100, 50)), kind, icc_profile=SRGB_BYTES)
    image = decode(data)
    assert image.size == size
    assert np.abs(np.asarray(image, int) - [200, 100, 50]).max() <= 3


@pytest.mark.parametrize("kind", ["jpeg", "webp", "png"])
def test_absurd_size(kind: str) -> None:
    data = bytearray(saved(FIELD, kind, **({"lossless": True} if kind == "webp" else {})))
    if kind == "jpeg":
        at = data.index(b"\xff\xc0")
        data[at + 5 : at + 9] = b"\xff\xdc\xff\xdc"
    elif kind == "png":
        data[16:24] = b"\x7f\xff\xff\xff" * 2
        data[29:33] = zlib.crc32(bytes(data[12:29])).to_bytes(4, "big")
    else:
        data[21:25] = b"\xff\xff\xff\x0f"
    assert refusal(bytes(data)).reason == "decompression bomb"


def test_pixel_limit_is_pillows(monkeypatch: pytest.MonkeyPatch) -> None:
    data = saved(FIELD, "jpeg")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", SIDE * SIDE - 1)
    assert refusal(data).reason == "decompression bomb"
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", SIDE * SIDE)
    assert decode(data).size == (SIDE, SIDE)


def test_no_damage_escapes_as_another_error() -> None:
    rich = [
        jpeg_with(saved(FIELD, "jpeg", icc_profile=GOOD), 0xE1, b"Exif\0\0" + tiff(TURN)),
        png_with(
            saved(FIELD, icc_profile=GOOD), gama(1.0), chrm(P3_CHROMATICITIES), chunk(b"eXIf", tiff(TURN))
        ),
        webp_with(saved(FIELD, "webp", lossless=True), b"EXIF", tiff(TURN)),
        saved(FIELD, "webp", save_all=True, append_images=[Image.fromarray(FIELD[::-1])]),
        raw_png(2, 16, rows16(VALUES, VALUES, VALUES), 32, chunk(b"tRNS", bytes(6))),
    ]
    rng = np.random.default_rng(2)
    for whole in rich:
        spots = [*range(0, min(len(whole), 700), 5), *rng.integers(0, len(whole), 60).tolist()]
        for i in spots:
            for damaged in (
                whole[:i],
                whole[:i] + bytes([whole[i] ^ 0x5A]) + whole[i + 1 :],
                whole[:i] + whole[i + 7 :],
            ):
                try:
                    decode(damaged)
                except BadImage as error:
                    assert " at 0x" not in error.detail and "/" not in error.detail
