"""Splits JPEG, PNG and WebP files into pixel data without metadata, and the metadata that matter.

A decoder that reads a whole file fails on metadata that no pixel depends on: a text chunk that is too
large, EXIF that is not TIFF, a broken index of further frames. So the pixel data are put into a separate
file with the first frame only, and the metadata are read here, where nothing raises.
"""

import struct
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from fewstep.preparation.colour import coded_profile, measured_profile
from fewstep.preparation.signatures import PNG_SIGNATURE

INFLATED_LIMIT = 2**24
"""Maximum bytes of a decompressed profile or text; the rest is not read."""


@dataclass(frozen=True)
class Parts:
    """The parts of an image file.

    pixels: a file of the same format with the first frame and no metadata.
    exif, xmp: the raw blocks in order of precedence, broken ones included.
    profile: the ICC profile of the pixels, or b"" for sRGB.
    hdr: the samples are PQ or HLG, which sRGB cannot show without tone mapping.
    """

    pixels: bytes
    exif: tuple[bytes, ...] = ()
    xmp: tuple[bytes, ...] = ()
    profile: bytes = b""
    hdr: bool = False


def inflate(data: bytes) -> bytes:
    """What can be inflated of a zlib stream, INFLATED_LIMIT bytes at most; b"" for garbage."""
    try:
        return zlib.decompressobj().decompress(data, INFLATED_LIMIT)
    except zlib.error:
        return b""


# --- JPEG (ITU-T T.81, annex B)

SOS, APP0, APP1, APP2, APP14, APP15 = 0xDA, 0xE0, 0xE1, 0xE2, 0xEE, 0xEF
STANDALONE = {0x00, 0x01, *range(0xD0, 0xDA)}  # stuffing, TEM, RSTn, SOI, EOI: no length follows
EXIF_MARK, XMP_MARK, ICC_MARK = b"Exif\0\0", b"http://ns.adobe.com/xap/1.0/\0", b"ICC_PROFILE\0"


def jpeg(encoded: bytes) -> Parts:
    """Split a JPEG. Of its application segments only JFIF and Adobe stay: they define the colour model."""
    pixels, exif, xmp = [encoded[:2]], [], []
    profile: dict[int, bytes] = {}
    profile_segments = 0
    for marker, segment in jpeg_segments(encoded):
        body = segment[4:]
        if marker == APP1 and body.startswith(EXIF_MARK):
            exif.append(body)
        elif marker == APP1 and body.startswith(XMP_MARK):
            xmp.append(body[len(XMP_MARK) :])
        elif marker == APP2 and body.startswith(ICC_MARK) and len(body) > len(ICC_MARK) + 2:
            number, profile_segments = body[len(ICC_MARK)], body[len(ICC_MARK) + 1]
            profile[number] = body[len(ICC_MARK) + 2 :]
        colour_model = (marker == APP0 and body.startswith(b"JFIF\0") and len(body) >= 14) or (
            marker == APP14 and body.startswith(b"Adobe") and len(body) >= 12
        )
        if colour_model or not APP0 <= marker <= APP15:
            pixels.append(segment)
    complete = sorted(profile) == list(range(1, profile_segments + 1))
    return Parts(
        b"".join(pixels),
        tuple(exif),
        tuple(xmp),
        b"".join(profile[number] for number in sorted(profile)) if complete else b"",
    )


def jpeg_segments(encoded: bytes) -> Iterator[tuple[int, bytes]]:
    """(marker, segment with its marker) up to the first scan, whose segment is all that follows.

    Bytes between two segments are skipped, as decoders do.
    """
    position = 2
    while (start := encoded.find(b"\xff", position)) >= 0 and start + 1 < len(encoded):
        marker = encoded[start + 1]
        if marker == SOS:
            yield marker, encoded[start:]
            return
        if marker == 0xFF:
            position = start + 1
        elif marker in STANDALONE:
            position = start + 2
        else:
            length = max(2, int.from_bytes(encoded[start + 2 : start + 4], "big"))
            position = start + 2 + length
            yield marker, encoded[start:position]


# --- PNG (W3C PNG, third edition)

PNG_PIXELS = {b"IHDR", b"PLTE", b"IDAT", b"IEND"}
PALETTE_TYPE = 3
RAW_EXIF = {b"Raw profile type exif", b"Raw profile type APP1"}  # ImageMagick: EXIF as hex digits


def png(encoded: bytes) -> Parts:
    """Split a PNG. IHDR, PLTE, tRNS, IDAT and IEND stay; the other chunks' checksums are not verified.

    An animation's first frame is the image in IDAT, which covers the whole canvas.
    """
    pixels, exif, texts, xmp = [encoded[:8]], [], [], []
    colour: dict[bytes, bytes] = {}
    header = b""
    for kind, body, chunk in png_chunks(encoded):
        if kind == b"IHDR":
            header = body
        if kind in PNG_PIXELS:
            pixels.append(chunk)
        elif kind == b"tRNS":
            pixels.append(png_transparency(header, body))
        elif kind == b"eXIf":
            exif.append(body)
        elif kind in (b"tEXt", b"zTXt", b"iTXt"):
            key, text = png_text(kind, body)
            if key == b"XML:com.adobe.xmp":
                xmp.append(text)
            elif key in RAW_EXIF:
                texts.append(from_hex(text))
        elif kind in (b"cICP", b"iCCP", b"sRGB", b"gAMA", b"cHRM"):
            colour.setdefault(kind, body)
    if not colour:
        return Parts(b"".join(pixels), (*exif, *texts), tuple(xmp))
    profile, hdr = png_profile(colour, gray=header[9:10] in (b"\0", b"\4"))
    return Parts(b"".join(pixels), (*exif, *texts), tuple(xmp), profile, hdr)


def png_chunks(encoded: bytes) -> Iterator[tuple[bytes, bytes, bytes]]:
    """(type, data, whole chunk); the last one is short in a truncated file. Data of IDAT are left out."""
    position = len(PNG_SIGNATURE)
    kind = b""
    while kind != b"IEND" and position + 8 <= len(encoded):
        length, kind = struct.unpack_from(">I4s", encoded, position)
        end = position + 12 + length
        yield kind, b"" if kind == b"IDAT" else encoded[position + 8 : end - 4], encoded[position:end]
        position = end


def png_chunk(kind: bytes, body: bytes) -> bytes:
    """A chunk with its length and checksum."""
    return struct.pack(">I", len(body)) + kind + body + zlib.crc32(kind + body).to_bytes(4, "big")


def png_transparency(header: bytes, body: bytes) -> bytes:
    """The tRNS chunk with gray below 8 bits scaled as the decoder scales the pixels; b"" if malformed.

    Bits above the image's depth are ignored (PNG, 11.3.1.1).
    """
    depth, colour_type = (header[8], header[9]) if len(header) >= 10 else (8, PALETTE_TYPE)
    if colour_type == PALETTE_TYPE:
        return png_chunk(b"tRNS", body[:256]) if body else b""
    samples = {0: 1, 2: 3}.get(colour_type, 0)  # gray, RGB
    if not samples or len(body) < 2 * samples:
        return b""
    largest = 2**depth - 1
    values = [value & largest for value in struct.unpack(f">{samples}H", body[: 2 * samples])]
    if depth < 8:
        values = [value * 255 // largest for value in values]
    return png_chunk(b"tRNS", struct.pack(f">{samples}H", *values))


def png_text(kind: bytes, body: bytes) -> tuple[bytes, bytes]:
    """Key and text of a text chunk; text is b"" unless it is EXIF or XMP."""
    key, _, rest = body.partition(b"\0")
    if key not in RAW_EXIF and key != b"XML:com.adobe.xmp":
        return key, b""
    if kind == b"tEXt":
        return key, rest
    if kind == b"zTXt":
        return key, inflate(rest[1:])
    compressed = rest[:1] == b"\1"
    text = rest[2:].split(b"\0", 2)[-1]  # behind the language and the translated key
    return key, inflate(text) if compressed else text


def from_hex(text: bytes) -> bytes:
    """The bytes in `\\nexif\\n  length\\nhex digits`; b"" where they are not hex digits."""
    try:
        return bytes.fromhex(b"".join(text.split(b"\n")[3:]).decode("ascii"))
    except ValueError:
        return b""


def png_profile(colour: dict[bytes, bytes], gray: bool) -> tuple[bytes, bool]:
    """(ICC profile or b"" for sRGB, whether samples are HDR), by the precedence of PNG, section 4.3."""
    if b"cICP" in colour:
        profile, hdr = coded_profile(colour[b"cICP"], gray)
        if hdr or profile:
            return profile or b"", hdr
    if b"iCCP" in colour:
        _, _, packed = colour[b"iCCP"].partition(b"\0")  # the profile's name precedes
        return inflate(packed[1:]) if packed.startswith(b"\0") else b"", False
    if b"sRGB" in colour:
        return b"", False
    return measured_profile(colour.get(b"gAMA", b""), colour.get(b"cHRM", b""), gray), False


# --- WebP (RFC 9649)

ALPHA_FLAG, ANIMATION_FLAG = 0x10, 0x02


def webp(encoded: bytes) -> Parts:
    """Split a WebP. The canvas, the first frame and its alpha stay."""
    frame: dict[bytes, bytes] = {}
    chunks: dict[bytes, list[bytes]] = {}
    for kind, body, chunk in riff_chunks(encoded):
        if kind == b"VP8X":
            flags = bytes([body[0] & (ALPHA_FLAG | ANIMATION_FLAG)]) if body else b""
            chunk = chunk[:8] + flags + chunk[9:]
        if kind in (b"VP8X", b"ANIM", b"ANMF", b"ALPH", b"VP8 ", b"VP8L"):
            frame.setdefault(kind, chunk)
        else:
            chunks.setdefault(kind, []).append(body)
    pixels = b"".join(frame.values())
    return Parts(
        b"RIFF" + struct.pack("<I", 4 + len(pixels)) + b"WEBP" + pixels,
        tuple(chunks.get(b"EXIF", ())),
        tuple(chunks.get(b"XMP ", ())),
        chunks.get(b"ICCP", [b""])[0],
    )


def riff_chunks(encoded: bytes) -> Iterator[tuple[bytes, bytes, bytes]]:
    """(type, data, whole chunk padded to an even length); the last one is short in a truncated file."""
    position = 12
    while position + 8 <= len(encoded):
        kind, length = struct.unpack_from("<4sI", encoded, position)
        end = position + 8 + length
        chunk = encoded[position:end]
        yield kind, chunk[8:], chunk + b"\0" * (length % 2) if len(chunk) == 8 + length else chunk
        position = end + length % 2


READERS: dict[str, Callable[[bytes], Parts]] = {"JPEG": jpeg, "PNG": png, "WEBP": webp}
