"""Embedded profiles and colour chunks: the very colours, in sRGB."""

import io
import struct
import zlib

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from fewstep.preparation import colour, containers
from tests.images import (
    ADOBE,
    ADOBE_CHROMATICITIES,
    FIELD,
    GOOD,
    LOSSLESS,
    P3_CHROMATICITIES,
    PROPHOTO,
    SIDE,
    SRGB_BYTES,
    SRGB_CHROMATICITIES,
    Pixels,
    X,
    assert_close,
    by_matrix,
    chrm,
    chunk,
    cmyk_icc,
    decoded,
    gama,
    gamma_curve,
    icc,
    jpeg_with,
    png_with,
    refusal,
    saved,
    srgb_of,
    webp_with,
)


@pytest.mark.parametrize(("name", "matrix", "gamma"), [("ProPhoto", PROPHOTO, 1.8), ("Adobe", ADOBE, 2.2)])
@pytest.mark.parametrize("kind", ["png", "webp"])
def test_embedded_profile_is_converted_to_srgb(
    kind: str, name: str, matrix: NDArray[np.float64], gamma: float
) -> None:
    profile = icc(b"RGB ", gamma_curve(gamma), matrix)
    pixels = decoded(saved(FIELD, kind, icc_profile=profile, **LOSSLESS[kind]))
    assert_close(pixels, by_matrix(FIELD, matrix, gamma))


def test_embedded_profile_of_a_jpeg() -> None:
    data = saved(FIELD, "jpeg", icc_profile=icc(b"RGB ", gamma_curve(2.2), ADOBE))
    assert_close(decoded(data), by_matrix(np.asarray(Image.open(io.BytesIO(data))), ADOBE, 2.2))


def test_profile_in_several_segments_of_a_jpeg_in_any_order() -> None:
    gamma = round(2.2 * 256) / 256
    table = np.round((np.arange(30_000) / 29_999) ** gamma * 65535).astype(">u2").tobytes()
    profile = icc(b"RGB ", b"curv" + bytes(4) + struct.pack(">I", 30_000) + table, ADOBE)
    parts = [profile[i : i + 50_000] for i in range(0, len(profile), 50_000)]
    assert len(parts) == 4
    plain = data = saved(FIELD, "jpeg")
    for number in (1, 4, 2, 3):
        data = jpeg_with(data, 0xE2, b"ICC_PROFILE\0" + bytes([number, 4]) + parts[number - 1])
    assert_close(decoded(data), by_matrix(np.asarray(Image.open(io.BytesIO(plain))), ADOBE, 2.2))


def test_profile_of_a_palette_and_its_transparency() -> None:
    profile = icc(b"RGB ", gamma_curve(2.2), ADOBE)
    palette = Image.fromarray(FIELD).quantize(16)
    expected = by_matrix(np.asarray(palette.convert("RGB")), ADOBE, 2.2)
    expected[np.asarray(palette) == 3] = 255
    assert_close(decoded(saved(palette, icc_profile=profile, transparency=3)), expected)


@pytest.mark.parametrize("kind", ["png", "webp"])
def test_alpha_is_kept_through_the_conversion(kind: str) -> None:
    alpha = np.where(X < SIDE // 2, 255, 96).astype(np.uint8)[..., None]
    profile = icc(b"RGB ", gamma_curve(1.8), PROPHOTO)
    data = saved(np.concatenate([FIELD, alpha], -1), kind, icc_profile=profile, **LOSSLESS[kind])
    share = alpha / 255
    assert_close(decoded(data), by_matrix(FIELD, PROPHOTO, 1.8) * share + 255 * (1 - share))


@pytest.mark.parametrize("kind", ["png", "jpeg"])
@pytest.mark.parametrize("alpha", [False, True])
def test_gray_profile(kind: str, alpha: bool) -> None:
    gray = (5 * X).clip(0, 255).astype(np.uint8)
    image = Image.fromarray(gray)
    expected = srgb_of((gray / 255) ** 1.0)
    if alpha and kind == "png":
        image = Image.merge("LA", [image, Image.new("L", image.size, 128)])
        expected = expected * (128 / 255) + 255 * (127 / 255)
    pixels = decoded(saved(image, kind, icc_profile=icc(b"GRAY", gamma_curve(1.0))))
    # A level of linear light is up to 13 levels of sRGB in the dark, and a JPEG is a level off.
    bright = gray > 20
    assert_close(pixels[bright], np.repeat(expected[..., None], 3, -1)[bright], 2 if kind == "png" else 5)


def test_cmyk_profile_of_a_jpeg() -> None:
    inks = np.zeros((64, 64, 4), np.uint8)
    inks[:32, :32, 1] = 255
    inks[32:, :32, 0] = 255
    inks[32:, 32:, 3] = 255
    data = saved(Image.fromarray(inks, "CMYK"), "jpeg", icc_profile=cmyk_icc())
    pixels = decoded(data)
    half = srgb_of(np.array([1, 0.5, 1]))
    for place, expected in {(8, 8): half, (8, 56): 255, (56, 8): (0, 255, 255), (56, 56): 0}.items():
        assert np.abs(pixels[place] - np.asarray(expected)).max() <= 3, place


def test_cmyk_jpeg_without_a_profile() -> None:
    inks = np.zeros((32, 32, 4), np.uint8)
    inks[:16, :, 0] = 255
    inks[16:, :, 3] = 128
    pixels = decoded(saved(Image.fromarray(inks, "CMYK"), "jpeg"))
    assert_close(pixels[4, 4], np.array([0, 255, 255]))
    assert_close(pixels[28, 4], np.array([127, 127, 127]))


@pytest.mark.parametrize("mode", ["RGB", "RGBA"])
@pytest.mark.parametrize("kind", ["png", "webp"])
def test_srgb_profile_changes_nothing_and_costs_one_lookup(kind: str, mode: str) -> None:
    image = Image.fromarray(FIELD).convert(mode)
    data = saved(image, kind, icc_profile=SRGB_BYTES, **LOSSLESS[kind])
    assert np.array_equal(decoded(data), FIELD)
    assert colour.transform_to_srgb(SRGB_BYTES, "RGB") is None
    before = colour.transform_to_srgb.cache_info().misses
    decoded(data)
    assert colour.transform_to_srgb.cache_info().misses == before


BROKEN = {
    "garbage": b"no profile at all",
    "empty": b"",
    "cut": GOOD[:200],
    "header only": GOOD[:128],
    "gray profile": icc(b"GRAY", gamma_curve(1.0)),
    "CMYK profile": cmyk_icc(),
    "no colours": icc(b"RGB ", gamma_curve(2.2), np.zeros((3, 3))),
    "all is white": icc(b"RGB ", b"curv" + bytes(4) + struct.pack(">I2H", 2, 65535, 65535), ADOBE),
}


@pytest.mark.parametrize("name", BROKEN)
@pytest.mark.parametrize("kind", ["png", "webp", "jpeg"])
def test_unusable_profile_leaves_the_numbers_as_srgb(kind: str, name: str) -> None:
    profile = BROKEN[name]
    plain = saved(FIELD, kind, **LOSSLESS.get(kind, {}))
    data = {
        "png": lambda: png_with(plain, chunk(b"iCCP", b"x\0\0" + zlib.compress(profile))),
        "webp": lambda: webp_with(plain, b"ICCP", profile),
        "jpeg": lambda: jpeg_with(plain, 0xE2, b"ICC_PROFILE\0\1\1" + profile),
    }[kind]()
    assert np.array_equal(decoded(data), np.asarray(Image.open(io.BytesIO(plain)).convert("RGB")))


@pytest.mark.parametrize("kind", ["png", "jpeg"])
def test_rgb_profile_on_gray_leaves_the_numbers_as_srgb(kind: str) -> None:
    gray = FIELD[..., 0]
    data = saved(gray, kind, icc_profile=GOOD)
    assert_close(decoded(data), np.repeat(gray[..., None], 3, -1), 0 if kind == "png" else 3)


def test_damaged_profile_chunks() -> None:
    plain = saved(FIELD)
    packed = zlib.compress(GOOD)
    for body in (b"", b"x", b"x\0", b"x\0\1" + packed, b"x\0\0junk", b"x\0\0" + packed[:40]):
        assert np.array_equal(decoded(png_with(plain, chunk(b"iCCP", body))), FIELD)
    bomb = b"x\0\0" + zlib.compress(bytes(2 * containers.INFLATED_LIMIT), 9)
    assert np.array_equal(decoded(png_with(plain, chunk(b"iCCP", bomb))), FIELD)
    jpeg = saved(FIELD, "jpeg")
    segments = jpeg_with(
        jpeg_with(jpeg, 0xE2, b"ICC_PROFILE\0\1\3" + GOOD), 0xE2, b"ICC_PROFILE\0\3\3" + GOOD
    )
    assert np.array_equal(decoded(segments), decoded(jpeg))


def primaries_to_srgb(chromaticities: tuple[float, ...]) -> NDArray[np.float64]:
    """Linear RGB of these primaries at white D65 -> linear sRGB."""

    def matrix(values: tuple[float, ...]) -> NDArray[np.float64]:
        white, *rgb = (
            np.array([values[i], values[i + 1], 1 - values[i] - values[i + 1]]) for i in (0, 2, 4, 6)
        )
        columns = np.stack(rgb, -1)
        return columns * np.linalg.solve(columns, white / white[1])

    return np.linalg.inv(matrix(SRGB_CHROMATICITIES)) @ matrix(chromaticities)


def unsrgb(pixels: Pixels) -> NDArray[np.float64]:
    level = pixels / 255
    return np.where(level <= 0.04045, level / 12.92, ((level + 0.055) / 1.055) ** 2.4)


IDENTITY = np.eye(3)
TO_SRGB: dict[str, tuple[list[bytes], NDArray[np.float64]]] = {
    "gAMA 1/2.2 is sRGB": ([gama(0.45455)], FIELD.astype(float)),
    "gAMA 1/2.2 and cHRM of sRGB": ([gama(0.45455), chrm(SRGB_CHROMATICITIES)], FIELD.astype(float)),
    "gAMA 1/1.8": ([gama(0.55556)], srgb_of((FIELD / 255) ** 1.8)),
    "gAMA 1": ([gama(1.0)], srgb_of(FIELD / 255)),
    "cHRM of Adobe RGB": (
        [gama(0.45455), chrm(ADOBE_CHROMATICITIES)],
        srgb_of(unsrgb(FIELD) @ primaries_to_srgb(ADOBE_CHROMATICITIES).T),
    ),
    "sRGB chunk before gAMA": ([chunk(b"sRGB", b"\0"), gama(1.0)], FIELD.astype(float)),
    "iCCP before gAMA": (
        [chunk(b"iCCP", b"x\0\0" + zlib.compress(GOOD)), gama(1.0)],
        by_matrix(FIELD, ADOBE, 2.2),
    ),
    "cICP Display P3 before all": (
        [chunk(b"cICP", bytes([12, 13, 0, 1])), chunk(b"iCCP", b"x\0\0" + zlib.compress(GOOD)), gama(1.0)],
        srgb_of(unsrgb(FIELD) @ primaries_to_srgb(P3_CHROMATICITIES).T),
    ),
    "cICP sRGB": ([chunk(b"cICP", bytes([1, 13, 0, 1]))], FIELD.astype(float)),
    "cICP of no code": ([chunk(b"cICP", bytes([77, 13, 0, 1]))], FIELD.astype(float)),
    "gAMA 0": ([gama(0.0)], FIELD.astype(float)),
    "cHRM 0": ([chrm((0.0,) * 8)], FIELD.astype(float)),
    "gAMA beside cHRM 0": ([gama(1.0), chrm((0.0,) * 8)], srgb_of(FIELD / 255)),
    "cHRM huge": ([chunk(b"cHRM", b"\xff" * 32)], FIELD.astype(float)),
    "chunks cut": ([chunk(b"gAMA", b"\0"), chunk(b"cHRM", b"\0" * 9)], FIELD.astype(float)),
}


@pytest.mark.parametrize("name", TO_SRGB)
def test_colour_chunks_of_a_png(name: str) -> None:
    chunks, expected = TO_SRGB[name]
    assert_close(decoded(png_with(saved(FIELD), *chunks)), expected)


def test_gamma_of_a_gray_png() -> None:
    gray = FIELD[..., 0]
    data = png_with(saved(gray), gama(1.0), chrm(ADOBE_CHROMATICITIES))
    assert_close(decoded(data), np.repeat(srgb_of(gray / 255)[..., None], 3, -1))


@pytest.mark.parametrize("transfer", [16, 18])
def test_hdr_samples_are_refused(transfer: int) -> None:
    error = refusal(png_with(saved(FIELD), chunk(b"cICP", bytes([9, transfer, 0, 1]))))
    assert (error.reason, error.detail) == ("format not decoded", "a PNG file with PQ or HLG samples")
