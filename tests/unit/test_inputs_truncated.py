"""Image data that end early are seen where Pillow is silent; whole ones pass."""

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from tests.images import (
    ADAM7,
    chunk,
    decoded,
    raw_png,
    refusal,
    saved,
)

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
        assert refusal(data).reason == "corrupt image"


def test_cut_first_frame_of_a_stereo_jpeg() -> None:
    whole = saved(PHOTO, "mpo", save_all=True, append_images=[Image.fromarray(PHOTO[::-1])])
    end = whole.index(b"\xff\xd9\xff\xd8")
    assert refusal(whole[: end // 2] + whole[end:]).reason == "corrupt image"


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
    assert refusal(data).reason == "corrupt image"


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
    assert refusal(of(raw[:-1])).reason == "corrupt image"
    assert refusal(of(b"".join(passes[:-1]))).reason == "corrupt image"


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
    assert refusal(b"RIFF" + struct.pack("<I", 4 + len(image)) + b"WEBP" + image).reason == "corrupt image"


@pytest.mark.parametrize(("kind", "suffix"), [("webp", "webp"), ("png", "png"), ("mpo", "jpeg")])
def test_first_frame(kind: str, suffix: str) -> None:
    options: dict[str, object] = {"lossless": True} if kind == "webp" else {}
    others = [Image.fromarray(255 - PHOTO), Image.fromarray(PHOTO[::-1])]
    data = saved(PHOTO, kind, save_all=True, append_images=others, **options)
    expected = np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))
    assert np.array_equal(decoded(data), expected)
    assert np.array_equal(decoded(data[:-100]), expected), "further frames do not count"
