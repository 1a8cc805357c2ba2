"""Conversion to sRGB by an ICC profile, embedded or made from a PNG's gAMA, cHRM and cICP chunks."""

import io
import struct
from contextlib import suppress
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageCms

CACHED = 16
"""Transforms kept in the cache: a data set has few profiles, and building a transform takes 1 ... 20 ms."""

Chromaticity = tuple[float, float]
SRGB_PRIMARIES = ((0.64, 0.33), (0.30, 0.60), (0.15, 0.06))
D65, D50 = (0.3127, 0.3290), np.array([0.9642, 1.0, 0.8249])
BRADFORD = np.array([[0.8951, 0.2664, -0.1614], [-0.7502, 1.7135, 0.0367], [0.0389, -0.0685, 1.0296]])
CODED_PRIMARIES: dict[int, tuple[tuple[Chromaticity, Chromaticity, Chromaticity], Chromaticity]] = {
    1: (SRGB_PRIMARIES, D65),
    4: (((0.67, 0.33), (0.21, 0.71), (0.14, 0.08)), (0.310, 0.316)),
    5: (((0.64, 0.33), (0.29, 0.60), (0.15, 0.06)), D65),
    6: (((0.63, 0.34), (0.31, 0.595), (0.155, 0.07)), D65),
    7: (((0.63, 0.34), (0.31, 0.595), (0.155, 0.07)), D65),
    9: (((0.708, 0.292), (0.170, 0.797), (0.131, 0.046)), D65),
    11: (((0.68, 0.32), (0.265, 0.69), (0.15, 0.06)), (0.314, 0.351)),
    12: (((0.68, 0.32), (0.265, 0.69), (0.15, 0.06)), D65),
}
"""ITU-T H.273, table 2: red, green, blue and white in CIE xy."""
SRGB_LIKE, GAMMAS, HDR = {1, 6, 13, 14, 15}, {4: 2.2, 5: 2.8, 8: 1.0}, {16, 18}
"""ITU-T H.273, table 3. BT.709 and similar curves are treated as the sRGB curve, as browsers do."""


def to_srgb(image: Image.Image, profile: bytes) -> Image.Image:
    """`image` (L, RGB or CMYK) as sRGB in mode RGB; without a usable profile its values are taken as sRGB.

    Relative colorimetric with black point compensation, 8 bits: colours inside the gamut are exact, those
    outside are clipped, the paper becomes white and the darkest ink black. (The perceptual intent would move
    colours inside the gamut, by an amount that each profile's maker chose.)

    A profile is not used when it cannot be parsed, when it is for another mode, or when it maps white far
    from white or black to a light colour. Nor is one that equals sRGB within one level, to save a lookup.
    """
    transform = transform_to_srgb(profile, image.mode) if profile else None
    if transform is None:
        return image.convert("RGB")
    converted = ImageCms.applyTransform(image, transform)
    assert converted is not None  # only None in place
    return converted


@lru_cache(CACHED)
def transform_to_srgb(profile: bytes, mode: str) -> ImageCms.ImageCmsTransform | None:
    """The transform, or None where the values are to be taken as sRGB."""
    try:
        transform = ImageCms.buildTransform(
            ImageCms.ImageCmsProfile(io.BytesIO(profile)),
            ImageCms.createProfile("sRGB"),
            mode,
            "RGB",
            ImageCms.Intent.RELATIVE_COLORIMETRIC,
            ImageCms.Flags.BLACKPOINTCOMPENSATION,
        )
        probe = probe_of(mode)
        converted = ImageCms.applyTransform(probe, transform)
    except Exception:
        return None
    if converted is None:
        return None
    shown = np.asarray(converted, np.int16)
    if shown[0, 0].min() < 200 or shown[0, -1].mean() > 128:
        return None
    return None if np.abs(shown - np.asarray(probe.convert("RGB"), np.int16)).max() <= 1 else transform


def probe_of(mode: str) -> Image.Image:
    """Colours across the gamut of `mode`, white first, the darkest last."""
    channels = len(Image.new(mode, (1, 1)).getbands())
    steps = np.linspace(255, 0, 256 if channels == 1 else 18).astype(np.uint8)
    if mode == "CMYK":
        steps = steps[::-1]
        channels = 3  # without black ink: enough to find white, and CMYK values are never sRGB
    grid = np.stack(np.meshgrid(*[steps] * channels, indexing="ij"), -1).reshape(1, -1, channels)
    if mode == "CMYK":
        grid = np.concatenate([grid, np.zeros_like(grid[..., :1])], -1)
    return Image.fromarray(grid[..., 0] if mode == "L" else np.ascontiguousarray(grid), mode)


def coded_profile(cicp: bytes, gray: bool) -> tuple[bytes | None, bool]:
    """(profile, whether the samples are HDR) of a cICP chunk.

    The profile is None where the chunk is to be ignored: other code points, a matrix or narrow range.
    """
    if len(cicp) < 4:
        return None, False
    primaries, transfer, matrix, full_range = cicp[:4]
    if primaries not in CODED_PRIMARIES or matrix or not full_range:
        return None, False
    if transfer in HDR:
        return None, True
    if transfer not in SRGB_LIKE and transfer not in GAMMAS:
        return None, False
    curve = srgb_curve() if transfer in SRGB_LIKE else power_curve(GAMMAS[transfer])
    return icc_profile(*CODED_PRIMARIES[primaries], curve, gray), False


def measured_profile(gama: bytes, chrm: bytes, gray: bool) -> bytes:
    """The profile that a PNG's gAMA and cHRM chunks describe; b"" (sRGB) if they are absent or invalid.

    A gamma within 5 % of 1/2.2 is what encoders write for sRGB, so it gets the sRGB curve.
    """
    gamma = int.from_bytes(gama[:4], "big") / 100_000 if len(gama) >= 4 else 0.0
    known = 0.1 <= gamma <= 5
    curve = power_curve(1 / gamma) if known and abs(gamma * 2.2 - 1) > 0.05 else srgb_curve()
    if len(chrm) >= 32:
        white_x, white_y, *xy = (value / 100_000 for value in struct.unpack(">8I", chrm[:32]))
        primaries = ((xy[0], xy[1]), (xy[2], xy[3]), (xy[4], xy[5]))
        with suppress(ZeroDivisionError, ValueError, np.linalg.LinAlgError, struct.error):
            return icc_profile(primaries, (white_x, white_y), curve, gray)
    return icc_profile(SRGB_PRIMARIES, D65, curve, gray) if known else b""


def srgb_curve() -> NDArray[np.float64]:
    """Linear light of the 256 levels of an sRGB channel (IEC 61966-2-1)."""
    level = np.arange(256) / 255
    return np.where(level <= 0.04045, level / 12.92, ((level + 0.055) / 1.055) ** 2.4)


def power_curve(exponent: float) -> NDArray[np.float64]:
    """Linear light of the 256 levels of a channel, level ** exponent."""
    return (np.arange(256) / 255) ** exponent


def icc_profile(
    primaries: tuple[Chromaticity, Chromaticity, Chromaticity],
    white: Chromaticity,
    curve: NDArray[np.float64],
    gray: bool,
) -> bytes:
    """A version 2 display profile (ICC.1:2001-04) of RGB primaries in CIE xy, or of gray.

    Raises ZeroDivisionError, ValueError, LinAlgError or struct.error for invalid chromaticities.
    """
    table = (
        b"curv" + bytes(4) + struct.pack(">I", len(curve)) + np.round(curve * 65535).astype(">u2").tobytes()
    )
    tags = {b"wtpt": xyz_tag(D50)}
    if gray:
        tags[b"kTRC"] = table
    else:
        light = xyz(white)
        matrix = np.array([xyz(primary) for primary in primaries]).T
        matrix = matrix * np.linalg.solve(matrix, light)
        cones = BRADFORD @ D50 / (BRADFORD @ light)
        matrix = np.linalg.solve(BRADFORD, cones[:, None] * BRADFORD) @ matrix
        if not np.isfinite(matrix).all() or np.abs(matrix).max() > 100:
            raise ValueError("no colours")
        for name, column in zip(b"rgb", matrix.T, strict=True):
            tags[bytes([name]) + b"XYZ"] = xyz_tag(column)
            tags[bytes([name]) + b"TRC"] = table
    directory, body = b"", b""
    for tag, data in tags.items():
        directory += tag + struct.pack(">II", 132 + 12 * len(tags) + len(body), len(data))
        body += data
    space = b"GRAY" if gray else b"RGB "
    header = struct.pack(">I", 132 + len(directory) + len(body)) + bytes(4) + b"\2\x20\0\0"
    header += b"mntr" + space + b"XYZ " + bytes(12) + b"acsp" + bytes(28) + xyz_tag(D50)[8:]
    return header.ljust(128, b"\0") + struct.pack(">I", len(tags)) + directory + body


def xyz(chromaticity: Chromaticity) -> NDArray[np.float64]:
    """CIE XYZ at luminance 1."""
    x, y = chromaticity
    return np.array([x / y, 1.0, (1 - x - y) / y])


def xyz_tag(value: NDArray[np.float64]) -> bytes:
    """An XYZType of one value."""
    return b"XYZ " + bytes(4) + struct.pack(">3i", *np.round(value * 65536).astype(int).tolist())
