"""Images of the kinds that people report trouble with: each is decoded to the right colours, or refused."""

import io
import struct
import subprocess
import sys
import zlib
from collections.abc import Callable

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image, ImageCms

from fewstep.preparation import colour, containers
from fewstep.preparation.pictures import BadPicture, decode

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
    picture = image if isinstance(image, Image.Image) else Image.fromarray(image)
    picture.save(stream, kind, **({"quality": 95, "subsampling": 0} if kind == "jpeg" else {}) | options)
    return stream.getvalue()


def decoded(data: bytes) -> Pixels:
    image = decode(data)
    assert image.mode == "RGB"
    return np.asarray(image)


def assert_close(found: Pixels, expected: NDArray[np.generic], levels: float = 2) -> None:
    assert found.shape == expected.shape
    assert np.abs(found.astype(float) - expected.astype(float)).max() <= levels


def refusal(data: bytes) -> BadPicture:
    with pytest.raises(BadPicture) as caught:
        decode(data)
    return caught.value


# --- makers of files


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


# --- colours, computed apart from the code under test


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


# --- colour profiles


@pytest.mark.parametrize(("name", "matrix", "gamma"), [("ProPhoto", PROPHOTO, 1.8), ("Adobe", ADOBE, 2.2)])
@pytest.mark.parametrize("kind", ["png", "webp"])
def test_embedded_profile_is_converted_to_srgb(
    kind: str, name: str, matrix: NDArray[np.float64], gamma: float
) -> None:
    profile = icc(b"RGB ", gamma_curve(gamma), matrix)
    found = decoded(saved(FIELD, kind, icc_profile=profile, **LOSSLESS[kind]))
    assert_close(found, by_matrix(FIELD, matrix, gamma))


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
    found = decoded(saved(image, kind, icc_profile=icc(b"GRAY", gamma_curve(1.0))))
    # A level of linear light is up to 13 levels of sRGB in the dark, and a JPEG is a level off.
    bright = gray > 20
    assert_close(found[bright], np.repeat(expected[..., None], 3, -1)[bright], 2 if kind == "png" else 5)


def test_cmyk_profile_of_a_jpeg() -> None:
    inks = np.zeros((64, 64, 4), np.uint8)
    inks[:32, :32, 1] = 255
    inks[32:, :32, 0] = 255
    inks[32:, 32:, 3] = 255
    data = saved(Image.fromarray(inks, "CMYK"), "jpeg", icc_profile=cmyk_icc())
    found = decoded(data)
    half = srgb_of(np.array([1, 0.5, 1]))
    for place, expected in {(8, 8): half, (8, 56): 255, (56, 8): (0, 255, 255), (56, 56): 0}.items():
        assert np.abs(found[place] - np.asarray(expected)).max() <= 3, place


def test_cmyk_jpeg_without_a_profile() -> None:
    inks = np.zeros((32, 32, 4), np.uint8)
    inks[:16, :, 0] = 255
    inks[16:, :, 3] = 128
    found = decoded(saved(Image.fromarray(inks, "CMYK"), "jpeg"))
    assert_close(found[4, 4], np.array([0, 255, 255]))
    assert_close(found[28, 4], np.array([127, 127, 127]))


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


GOOD = icc(b"RGB ", gamma_curve(2.2), ADOBE)
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


SRGB_CHROMATICITIES = (0.3127, 0.329, 0.64, 0.33, 0.30, 0.60, 0.15, 0.06)
ADOBE_CHROMATICITIES = (0.3127, 0.329, 0.64, 0.33, 0.21, 0.71, 0.15, 0.06)
P3_CHROMATICITIES = (0.3127, 0.329, 0.68, 0.32, 0.265, 0.69, 0.15, 0.06)


def gama(gamma: float) -> bytes:
    return chunk(b"gAMA", struct.pack(">I", round(gamma * 100_000)))


def chrm(chromaticities: tuple[float, ...]) -> bytes:
    return chunk(b"cHRM", struct.pack(">8I", *(round(v * 100_000) for v in chromaticities)))


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


# --- 16 bits, and fewer than 8

VALUES = (np.arange(32 * 32).reshape(32, 32) * 64).astype(">u2")


ADAM7 = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2))


def rows16(*channels: NDArray[np.generic]) -> list[bytes]:
    return [row.astype(">u2").tobytes() for row in np.stack(channels, -1)]


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
    found = decoded(raw_png(0, 16, rows16(VALUES), 32, *chunks))
    assert np.array_equal(found, np.repeat((VALUES >> 8).astype(np.uint8)[..., None], 3, -1))


def test_sixteen_bit_gray_with_a_profile() -> None:
    profile = chunk(b"iCCP", b"x\0\0" + zlib.compress(icc(b"GRAY", gamma_curve(1.8))))
    expected = srgb_of(((VALUES >> 8) / 255) ** (round(1.8 * 256) / 256))
    assert_close(decoded(raw_png(0, 16, rows16(VALUES), 32, profile))[..., 1], expected)


def test_only_the_very_value_is_transparent_in_sixteen_bit_gray() -> None:
    found = decoded(raw_png(0, 16, rows16(VALUES), 32, chunk(b"tRNS", struct.pack(">H", 640))))
    expected = np.where(VALUES == 640, 255, VALUES >> 8)
    assert (VALUES == 640).sum() == 1 and (VALUES >> 8 == 640 >> 8).sum() > 1
    assert np.array_equal(found[..., 2], expected)


@pytest.mark.parametrize("key", [(0, 1, 2), (640, 65535 - 640, 0)])
def test_only_the_very_colour_is_transparent_in_sixteen_bit_rgb(key: tuple[int, int, int]) -> None:
    rgb = np.stack([VALUES, 65535 - VALUES, np.zeros_like(VALUES)], -1)
    rgb[0, 0] = 0  # near the first key, and of the same high bytes
    found = decoded(
        raw_png(2, 16, rows16(*np.moveaxis(rgb, -1, 0)), 32, chunk(b"tRNS", struct.pack(">HHH", *key)))
    )
    expected = (rgb >> 8).astype(np.uint8)
    expected[(rgb == key).all(-1)] = 255
    assert (expected == 255).all(-1).any() == (key[0] == 640)
    assert np.array_equal(found, expected)


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
        found = decoded(raw_png(0, depth, rows, 256, chunk(b"tRNS", struct.pack(">H", key | high_bits))))
        assert np.array_equal(found[..., 0], np.where(values == key, 255, expected))


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


# --- metadata


def tiff(*entries: bytes, order: str = "<") -> bytes:
    start = {"<": b"II*\0", ">": b"MM\0*"}[order]
    return start + struct.pack(order + "IH", 8, len(entries)) + b"".join(entries) + bytes(4)


def entry(tag: int, kind: int, count: int, value: bytes, order: str = "<") -> bytes:
    return struct.pack(order + "HHI", tag, kind, count) + value.ljust(4, b"\0")


TURN = entry(0x0112, 3, 1, b"\6\0")
TURNED = {  # EXIF blocks that ask for a quarter turn
    "plain": tiff(TURN),
    "big endian": tiff(entry(0x0112, 3, 1, b"\0\6", ">"), order=">"),
    "prefix twice": b"Exif\0\0Exif\0\0" + tiff(TURN),
    "long": tiff(entry(0x0112, 4, 1, b"\6\0\0\0")),
    "byte": tiff(entry(0x0112, 1, 1, b"\6")),
    "number is text": tiff(entry(0x0103, 2, 4, b"abc\0"), TURN),
    "text is number": tiff(TURN, entry(0x0131, 3, 1, b"\7\0")),
    "zero denominator out of file": tiff(TURN, entry(0x011A, 5, 1, b"\xff\xff\xff\x7f")),
    "GPS is text": tiff(TURN, entry(0x8825, 2, 4, b"abc\0")),
    "GPS out of file": tiff(TURN, entry(0x8825, 4, 1, b"\xff\xff\xff\x7f")),
    "type of no kind": tiff(entry(0x010E, 99, 2, b"zz"), TURN),
    "directory cut": tiff(TURN, entry(0x011A, 5, 1, b"\0"), TURN)[:-30],
    "count beyond the end": b"II*\0" + struct.pack("<IH", 8, 0xFFFF) + TURN,
}
LEFT = {  # EXIF blocks that ask for nothing
    "garbage": b"no tiff at all",
    "empty": b"",
    "zeros": bytes(32),
    "header only": b"II*\0",
    "offset beyond": b"II*\0\xff\xff\xff\xff",
    "cut in the value": tiff(TURN)[:-8],
    "orientation 0": tiff(entry(0x0112, 3, 1, b"\0\0")),
    "orientation 9": tiff(entry(0x0112, 3, 1, b"\x09\0")),
    "orientation is text": tiff(entry(0x0112, 2, 2, b"6\0")),
    "two orientations": tiff(entry(0x0112, 3, 2, b"\6\0\6\0")),
    "orientation upright": tiff(entry(0x0112, 3, 1, b"\1\0")),
}


def hexed(block: bytes) -> bytes:
    return b"\nexif\n%8d\n%s\n" % (len(block), block.hex().encode())


CARRIERS: dict[str, Callable[[Pixels, bytes], bytes]] = {
    "jpeg APP1": lambda a, e: jpeg_with(saved(a, "jpeg"), 0xE1, b"Exif\0\0" + e),
    "png eXIf": lambda a, e: png_with(saved(a), chunk(b"eXIf", e)),
    "png eXIf last": lambda a, e: png_ending_with(saved(a), chunk(b"eXIf", e)),
    "png tEXt": lambda a, e: png_with(saved(a), chunk(b"tEXt", b"Raw profile type exif\0" + hexed(e))),
    "png zTXt": lambda a, e: png_with(
        saved(a), chunk(b"zTXt", b"Raw profile type APP1\0\0" + zlib.compress(hexed(e)))
    ),
    "webp EXIF": lambda a, e: webp_with(saved(a, "webp", lossless=True), b"EXIF", e),
    "webp EXIF prefixed": lambda a, e: webp_with(saved(a, "webp", lossless=True), b"EXIF", b"Exif\0\0" + e),
}


@pytest.mark.parametrize("carrier", CARRIERS)
@pytest.mark.parametrize("name", [*TURNED, *LEFT])
def test_orientation_is_honoured_where_it_can_be_read(carrier: str, name: str) -> None:
    data = CARRIERS[carrier](WIDE, (TURNED | LEFT)[name])
    expected = np.rot90(WIDE, -1) if name in TURNED else WIDE
    assert_close(decoded(data), expected, 6 if carrier.startswith("jpeg") else 0)


PACKET = '<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:Description %s/>%s</x:xmpmeta>'
XMP = {
    "attribute": (PACKET % ('tiff:Orientation="6"', "")).encode(),
    "single quotes": (PACKET % ("tiff:Orientation = '6'", "")).encode(),
    "element": (PACKET % ("", "<tiff:Orientation> 6 </tiff:Orientation>")).encode(),
    "not UTF-8": (PACKET % ('tiff:Orientation="6"', "")).encode() + b"caf\xe9 \xa8",
    "UTF-16": (PACKET % ('tiff:Orientation="6"', "")).encode("utf-16"),
    "none": b"<x:xmpmeta>caf\xe9 \xa8</x:xmpmeta>",
    "out of range": (PACKET % ('tiff:Orientation="9"', "")).encode(),
    "two digits": (PACKET % ('tiff:Orientation="62"', "")).encode(),
}
XMP_CARRIERS: dict[str, Callable[[Pixels, bytes], bytes]] = {
    "jpeg": lambda a, x: jpeg_with(saved(a, "jpeg"), 0xE1, b"http://ns.adobe.com/xap/1.0/\0" + x),
    "png": lambda a, x: png_with(saved(a), chunk(b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + x)),
    "png zlib": lambda a, x: png_with(
        saved(a), chunk(b"iTXt", b"XML:com.adobe.xmp\0\1\0\0\0" + zlib.compress(x))
    ),
    "webp": lambda a, x: webp_with(saved(a, "webp", lossless=True), b"XMP ", x),
}


@pytest.mark.parametrize("carrier", XMP_CARRIERS)
@pytest.mark.parametrize("name", XMP)
def test_orientation_in_xmp_only(carrier: str, name: str) -> None:
    turned = name not in ("none", "out of range", "two digits")
    found = decoded(XMP_CARRIERS[carrier](WIDE, XMP[name]))
    assert_close(found, np.rot90(WIDE, -1) if turned else WIDE, 6 if carrier == "jpeg" else 0)


def test_exif_comes_before_xmp_where_both_are_valid() -> None:
    half_turn = tiff(entry(0x0112, 3, 1, b"\3\0"))
    for exif, expected in ((half_turn, np.rot90(WIDE, 2)), (LEFT["orientation 9"], np.rot90(WIDE, -1))):
        xmp = chunk(b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + XMP["attribute"])
        assert np.array_equal(decoded(png_with(saved(WIDE), xmp, chunk(b"eXIf", exif))), expected)


BIG = zlib.compress(bytes(2 << 20), 9)
PNG_CHUNKS = {
    "large zTXt": chunk(b"zTXt", b"Comment\0\0" + BIG),
    "large iTXt": chunk(b"iTXt", b"Comment\0\1\0\0\0" + BIG),
    "much text": chunk(b"tEXt", b"Comment\0" + b"x" * 70_000_000),
    "text of another compression": chunk(b"zTXt", b"Comment\0\7" + BIG),
    "text with a wrong checksum": chunk(b"tEXt", b"Comment\0text")[:-4] + b"\0\0\0\0",
    "eXIf with a wrong checksum": chunk(b"eXIf", b"II*\0")[:-4] + b"\0\0\0\0",
    "hex of no bytes": chunk(b"tEXt", b"Raw profile type exif\0\nexif\n 6\nzzzz"),
    "hex of one line": chunk(b"tEXt", b"Raw profile type exif\0zz"),
    "pHYs cut": chunk(b"pHYs", b"\0"),
    "sRGB empty": chunk(b"sRGB", b""),
    "acTL cut": chunk(b"acTL", b"\0"),
    "acTL of no frames": chunk(b"acTL", bytes(8)),
    "fcTL out of order": chunk(b"acTL", struct.pack(">II", 2, 0)) + chunk(b"fcTL", b"\1" * 26),
    "name of no letters": chunk(b"\x80\xff12", b""),
    "tRNS of no use": chunk(b"tRNS", b"\0"),
}


@pytest.mark.parametrize("name", PNG_CHUNKS)
@pytest.mark.parametrize("place", [png_with, png_ending_with])
def test_no_png_chunk_condemns_good_pixels(name: str, place: Callable[..., bytes]) -> None:
    assert np.array_equal(decoded(place(saved(FIELD), PNG_CHUNKS[name])), FIELD)


JPEG_SEGMENTS = {
    "JFIF cut": (0xE0, b"JFIF\0"),
    "Adobe cut": (0xEE, b"Adobe"),
    "Photoshop cut": (0xED, b"Photoshop 3.0\x008BIM\x03\xed"),
    "Photoshop resolution cut": (0xED, b"Photoshop 3.0\x008BIM\x03\xed\0\0\0\0\0\x08\0"),
    "MPF garbage": (0xE2, b"MPF\0garbage"),
    "profile marker only": (0xE2, b"ICC_PROFILE\0"),
    "profile of no segments": (0xE2, b"ICC_PROFILE\0\0\0x"),
    "comment": (0xFE, b"\xff\xd9\xff\xda"),
}


@pytest.mark.parametrize("name", JPEG_SEGMENTS)
def test_no_jpeg_segment_condemns_good_pixels(name: str) -> None:
    plain = saved(FIELD, "jpeg")
    assert np.array_equal(decoded(jpeg_with(plain, *JPEG_SEGMENTS[name])), decoded(plain))


@pytest.mark.parametrize("kind", [b"EXIF", b"XMP "])
def test_webp_cut_in_its_metadata(kind: bytes) -> None:
    whole = webp_with(saved(FIELD, "webp", lossless=True), kind, bytes(100))
    assert np.array_equal(decoded(whole[:-60]), FIELD)


def test_nothing_is_printed() -> None:
    files = [CARRIERS[c](WIDE, e) for c in CARRIERS for e in (TURNED | LEFT).values()]
    files += [png_with(saved(FIELD), c) for n, c in PNG_CHUNKS.items() if n != "much text"]
    files += [jpeg_with(saved(FIELD, "jpeg"), *segment) for segment in JPEG_SEGMENTS.values()]
    script = (
        "import pickle, sys\nfrom fewstep.preparation.pictures import decode\n"
        "for data in pickle.load(sys.stdin.buffer): decode(data)"
    )
    import pickle

    run = subprocess.run(
        [sys.executable, "-c", script], input=pickle.dumps(files), capture_output=True, check=False
    )
    assert (run.returncode, run.stdout, run.stderr) == (0, b"", b"")


# --- data that end early

NOISE = np.random.default_rng(1).normal(0, 20, (160, 160, 3))
YY, XX = np.mgrid[0:160, 0:160]
PHOTO = (np.stack([XX, YY, 0.5 * (XX + YY)], -1) + NOISE).clip(0, 255).astype(np.uint8)
JPEGS: dict[str, tuple[str, dict[str, object]]] = {
    "baseline": ("RGB", {"subsampling": 2}),
    "4:4:4": ("RGB", {}),
    "progressive": ("RGB", {"progressive": True}),
    "gray": ("L", {}),
    "gray progressive": ("L", {"progressive": True}),
    "CMYK": ("CMYK", {}),
    "CMYK progressive": ("CMYK", {"progressive": True}),
    "restarts": ("RGB", {"restart_marker_rows": 1}),
    "restart per block": ("RGB", {"restart_marker_blocks": 1}),
    "progressive restarts": ("RGB", {"progressive": True, "restart_marker_rows": 2}),
    "4:2:2": ("RGB", {"subsampling": 1}),
}


def jpeg_of(name: str) -> bytes:
    mode, options = JPEGS[name]
    return saved(Image.fromarray(PHOTO).convert(mode), "jpeg", **options)


@pytest.mark.parametrize("name", JPEGS)
def test_whole_jpeg_is_decoded_as_pillow_does(name: str) -> None:
    data = jpeg_of(name)
    expected = np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))
    assert np.array_equal(decoded(data), expected)
    assert np.array_equal(decoded(data + bytes(999)), expected), "what comes behind the end does not count"
    assert np.array_equal(decoded(data[:-2] + b"\0" * 9 + b"\xff\xd9"), expected), "nor do stray bytes"
    tables = data.index(b"\xff\xdb")
    assert np.array_equal(decoded(data[:tables] + b"stray" + data[tables:]), expected)


@pytest.mark.parametrize("name", JPEGS)
@pytest.mark.parametrize("share", [0.1, 0.5, 0.9, 0.99])
def test_cut_jpeg_with_an_end_marker(name: str, share: float) -> None:
    data = jpeg_of(name)
    start = data.index(b"\xff\xda") + 14
    cut = data[: start + int((len(data) - start) * share)].rstrip(b"\xff")
    for data in (cut, cut + b"\xff\xd9"):
        assert refusal(data).reason == "corrupt picture"


def test_cut_first_frame_of_a_stereo_jpeg() -> None:
    whole = saved(PHOTO, "mpo", save_all=True, append_images=[Image.fromarray(PHOTO[::-1])])
    end = whole.index(b"\xff\xd9\xff\xd8")
    assert refusal(whole[: end // 2] + whole[end:]).reason == "corrupt picture"


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.9])
@pytest.mark.parametrize("finished", [False, True], ids=["stream cut", "stream ended"])
@pytest.mark.parametrize("interlaced", [False, True])
def test_png_with_rows_missing(share: float, finished: bool, interlaced: bool) -> None:
    rows = [row.tobytes() for row in PHOTO]
    raw = b"".join(b"\0" + row for row in rows)
    count = int(len(raw) * share) // len(rows[0]) * len(rows[0])
    stream = zlib.compress(raw[: int(share * 160) * 481]) if finished else zlib.compress(raw)[: count // 2]
    data = raw_png(2, 8, rows, 160, stream=stream)
    if interlaced:
        head = data[16:28] + b"\1"
        data = data[:8] + chunk(b"IHDR", head) + data[33:]
    assert refusal(data).reason == "corrupt picture"


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB", "RGBA", "LA", "I;16"])
def test_dark_last_rows_are_no_missing_rows(mode: str) -> None:
    dark = PHOTO.copy()
    dark[80:] = 0
    image = (
        Image.fromarray(dark[..., 0].astype(np.uint16))
        if mode == "I;16"
        else Image.fromarray(dark).convert(mode)
    )
    assert (decoded(saved(image))[80:] == 0).all()


@pytest.mark.parametrize("size", [(1, 1), (1, 9), (9, 1), (2, 3), (5, 4), (8, 8), (17, 13)])
@pytest.mark.parametrize(("colour_type", "depth", "channels"), [(0, 1, 1), (0, 4, 1), (2, 8, 3), (6, 16, 4)])
def test_interlaced_png_of_any_size(
    size: tuple[int, int], colour_type: int, depth: int, channels: int
) -> None:
    width, height = size
    passes = []
    for x, y, dx, dy in ADAM7:
        wide, high = len(range(x, width, dx)), len(range(y, height, dy))
        if wide and high:
            passes.append((b"\0" + b"\xff" * -(-wide * channels * depth // 8)) * high)
    raw = b"".join(passes)
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour_type, 0, 0, 1))

    def of(data: bytes) -> bytes:
        return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(data)) + chunk(b"IEND", b"")

    assert decoded(of(raw)).min() == 255
    assert refusal(of(raw[:-1])).reason == "corrupt picture"
    assert refusal(of(b"".join(passes[:-1]))).reason == "corrupt picture"


@pytest.mark.parametrize("lossless", [False, True])
@pytest.mark.parametrize("share", [0.05, 0.5, 0.9])
@pytest.mark.parametrize("animated", [False, True])
def test_cut_webp_of_the_right_sizes(lossless: bool, share: float, animated: bool) -> None:
    whole = saved(PHOTO, "webp", lossless=lossless)
    kind, payload = whole[12:16], whole[20:]
    cut = payload[: int(len(payload) * share) // 2 * 2]
    image = kind + struct.pack("<I", len(cut)) + cut
    if animated:
        size = struct.pack("<I", 159)[:3]
        frame = bytes(6) + size * 2 + bytes(4) + image
        image = b"VP8X" + struct.pack("<IB3x", 10, 2) + size * 2 + b"ANIM" + struct.pack("<I", 6) + bytes(6)
        image += b"ANMF" + struct.pack("<I", len(frame)) + frame
    assert refusal(b"RIFF" + struct.pack("<I", 4 + len(image)) + b"WEBP" + image).reason == "corrupt picture"


@pytest.mark.parametrize(("kind", "suffix"), [("webp", "webp"), ("png", "png"), ("mpo", "jpeg")])
def test_first_frame(kind: str, suffix: str) -> None:
    options: dict[str, object] = {"lossless": True} if kind == "webp" else {}
    others = [Image.fromarray(255 - PHOTO), Image.fromarray(PHOTO[::-1])]
    data = saved(PHOTO, kind, save_all=True, append_images=others, **options)
    expected = np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))
    assert np.array_equal(decoded(data), expected)
    assert np.array_equal(decoded(data[:-100]), expected), "further frames do not count"


# --- formats


@pytest.mark.parametrize("kind", ["jpeg", "png", "webp"])
def test_format_is_told_by_content(kind: str) -> None:
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
        assert (error.reason, error.detail) == ("corrupt picture", name)


# --- any bytes


@pytest.mark.parametrize("size", [(1, 300), (300, 1), (1, 1)])
@pytest.mark.parametrize("kind", ["jpeg", "png", "webp"])
def test_lines(size: tuple[int, int], kind: str) -> None:
    data = saved(Image.new("RGB", size, (200, 100, 50)), kind, icc_profile=SRGB_BYTES)
    found = decode(data)
    assert found.size == size
    assert np.abs(np.asarray(found, int) - [200, 100, 50]).max() <= 3


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
                except BadPicture as error:
                    assert " at 0x" not in error.detail and "/" not in error.detail
