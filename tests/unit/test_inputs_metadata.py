"""Metadata turn an image upright; what cannot be parsed never condemns good pixels."""

import struct
import subprocess
import sys
import zlib
from collections.abc import Callable

import numpy as np
import pytest

from tests.images import (
    FIELD,
    TURN,
    WIDE,
    Pixels,
    assert_close,
    chunk,
    decoded,
    entry,
    jpeg_with,
    png_ending_with,
    png_with,
    saved,
    tiff,
    webp_with,
)

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
    pixels = decoded(XMP_CARRIERS[carrier](WIDE, XMP[name]))
    assert_close(pixels, np.rot90(WIDE, -1) if turned else WIDE, 6 if carrier == "jpeg" else 0)


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
        "import pickle, sys\nfrom fewstep.preparation.images import decode\n"
        "for data in pickle.load(sys.stdin.buffer): decode(data)"
    )
    import pickle

    run = subprocess.run(
        [sys.executable, "-c", script], input=pickle.dumps(files), capture_output=True, check=False
    )
    assert (run.returncode, run.stdout, run.stderr) == (0, b"", b"")
