"""Recognises the format of a file by its first bytes."""

PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"


def format_of(encoded: bytes) -> str | None:
    """JPEG, PNG or WEBP, None for anything else."""
    if encoded.startswith(b"\xff\xd8\xff"):
        return "JPEG"
    if encoded.startswith(PNG_SIGNATURE):
        return "PNG"
    if encoded.startswith(b"RIFF") and encoded[8:12] == b"WEBP":
        return "WEBP"
    return None


BRANDS = {
    **dict.fromkeys((b"avif", b"avis"), "an AVIF file"),
    **dict.fromkeys((b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"hevm", b"hevs"), "a HEIC file"),
    **dict.fromkeys((b"mif1", b"msf1", b"mif2", b"miaf"), "a HEIF file"),
}
SIGNATURES = {
    b"GIF87a": "a GIF file",
    b"GIF89a": "a GIF file",
    b"II*\0": "a TIFF file",
    b"MM\0*": "a TIFF file",
    b"II+\0": "a TIFF file",
    b"MM\0+": "a TIFF file",
    b"\0\0\0\x0cJXL \r\n\x87\n": "a JPEG XL file",
    b"\xff\x0a": "a JPEG XL file",
    b"\0\0\0\x0cjP  \r\n\x87\n": "a JPEG 2000 file",
    b"\xff\x4f\xff\x51": "a JPEG 2000 file",
    b"8BPS": "a Photoshop file",
    b"\0\0\1\0": "an icon file",
}


def other_format(encoded: bytes) -> str | None:
    """The image format that is not decoded here ("a HEIC file"), by the first bytes; None if unknown."""
    if encoded[4:8] == b"ftyp":
        length = min(int.from_bytes(encoded[:4], "big"), 256)
        brands = [encoded[8:12], *(encoded[i : i + 4] for i in range(16, length, 4))]
        # The general brands (mif1, msf1) often come first; a compatible one then names the codec.
        names = [BRANDS[brand] for brand in brands if brand in BRANDS]
        return next((name for name in names if name != "a HEIF file"), names[0] if names else None)
    if encoded.startswith(b"BM") and len(encoded) >= 26 and encoded[6:10] == bytes(4):
        return "a BMP file"
    return next((name for start, name in SIGNATURES.items() if encoded.startswith(start)), None)


def no_image(encoded: bytes) -> str | None:
    """What is found in place of an image, such as a web page or a git-LFS pointer; None if unknown."""
    start = encoded[:512].removeprefix(b"\xef\xbb\xbf").lstrip().lower()
    if start.startswith(b"version https://git-lfs"):
        return "a git-LFS pointer"
    if start.startswith((b"<!doctype html", b"<html", b"<head", b"<body")):
        return "an HTML page"
    if start.startswith(b"<svg") or (start.startswith((b"<?xml", b"<!doctype svg")) and b"<svg" in start):
        return "an SVG file"
    if start.startswith(b"<?xml"):
        return "an HTML page" if b"<html" in start else "an XML file"
    return None
