"""Decodes image files to upright RGB images, and crops and resizes them to squares."""

import io
import warnings

import numpy as np
import simplejpeg
from PIL import Image, ImageFile, ImageOps, UnidentifiedImageError

from fewstep.preparation.colour import to_srgb
from fewstep.preparation.containers import READERS, Parts
from fewstep.preparation.orientation import upright
from fewstep.preparation.png_rows import complete, sixteen_bit_rgb
from fewstep.preparation.signatures import format_of, no_image, other_format

FORMATS = tuple(READERS)
CORRUPT, NOT_DECODED, BOMB = "corrupt image", "format not decoded", "decompression bomb"
"""The reasons of a BadImage."""

JPEG_COLOURS = {"L": "GRAY", "RGB": "RGB", "CMYK": "CMYK"}
JPEG_DAMAGE = {
    "premature end": "image data end early",
    "bad huffman code": "image data damaged",
    "bad arithmetic code": "image data damaged",
    "instead of rst": "image data damaged",
}
"""Warnings of libjpeg that mean lost pixels; others, such as extraneous bytes, do not."""


class BadImage(Exception):
    """A file that is not a usable image; `reason` is a fixed phrase, `detail` explains it."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason, self.detail = reason, detail


def decode(encoded: bytes) -> Image.Image:
    """The image as sRGB, upright, transparency composited on white, mode RGB.

    - Formats: JPEG, PNG and WebP, recognised by content, so that no other decoder reads untrusted bytes. Only
      the first frame of an animation or a stereo pair is used.
    - Colour: an embedded ICC profile is converted to sRGB, or a PNG's cICP, sRGB, gAMA and cHRM chunks in
      that order of precedence (see `colour`). Samples in PQ or HLG are refused.
    - Depth: 16 bits are reduced to 8 before the colour conversion, by their high byte.
    - Metadata that cannot be parsed are ignored; the orientation is that of EXIF, else of XMP.
    - Image data that end early raise, even if the file has its end marker. A JPEG is decoded once, by
      simplejpeg, which reports the warnings of libjpeg that Pillow hides, at no extra cost. A PNG is inflated
      a second time if its last row is zero or it is interlaced.

    Raises BadImage, and nothing else, for anything that is not decoded, for corrupt or truncated data, and
    for more pixels than `PIL.Image.MAX_IMAGE_PIXELS`, which is read from the header, before memory is taken.
    """
    kind = format_of(encoded)
    if kind is None:
        if name := other_format(encoded):
            raise BadImage(NOT_DECODED, name)
        raise BadImage(CORRUPT, no_image(encoded) or "no jpeg, png or webp file")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            parts = READERS[kind](encoded)
            if parts.hdr:
                raise BadImage(NOT_DECODED, f"a {kind} file with PQ or HLG samples")
            return upright(flat(pixels_of(parts), parts.profile), parts.exif, parts.xmp)
    except BadImage:
        raise
    except (Image.DecompressionBombWarning, Image.DecompressionBombError) as error:
        raise BadImage(BOMB, str(error)) from None
    except UnidentifiedImageError:
        raise BadImage(CORRUPT, f"a {kind} file with a damaged or unknown header") from None
    except Exception as error:
        message = str(error)
        raise BadImage(CORRUPT, type(error).__name__ if " at 0x" in message else message) from None


def pixels_of(parts: Parts) -> Image.Image:
    """The decoded pixels in the mode of the file. Raises BadImage when they end early."""
    image = Image.open(io.BytesIO(parts.pixels), formats=FORMATS)
    if image.format == "JPEG":
        return jpeg_pixels(parts.pixels, image)
    if image.format == "PNG":
        return png_pixels(parts.pixels, image)
    image.load()
    return image


def jpeg_pixels(encoded: bytes, image: ImageFile.ImageFile) -> Image.Image:
    """The pixels of an opened JPEG, as Pillow decodes them. Raises BadImage on damage that Pillow hides."""
    try:
        decoded = simplejpeg.decode_jpeg(encoded, JPEG_COLOURS[image.mode])
    except ValueError as error:
        warning = str(error).lower()
        if detail := next((detail for part, detail in JPEG_DAMAGE.items() if part in warning), None):
            raise BadImage(CORRUPT, detail) from None
        image.load()
        return image
    if image.mode == "CMYK":  # stored inverted, as Adobe does
        decoded = 255 - decoded
    return Image.fromarray(decoded[..., 0] if image.mode == "L" else decoded, image.mode)


def png_pixels(encoded: bytes, image: ImageFile.ImageFile) -> Image.Image:
    """The pixels of an opened PNG; 16-bit colour with a transparent colour as RGBA."""
    sixteen_bit_colour = image.tile[0].args == "RGB;16B"  # the stored format; the mode is RGB
    image.load()
    # Pillow leaves missing rows at zero.
    suspect = "interlace" in image.info or last_row_is_zero(image)
    if suspect and not complete(encoded):
        raise BadImage(CORRUPT, "image data end early")
    if sixteen_bit_colour and "transparency" in image.info:
        return keyed_sixteen_bit(encoded, image.info["transparency"])
    return image


def last_row_is_zero(image: Image.Image) -> bool:
    """Whether the last row is zero in all channels; its last pixel, checked first, decides most images."""
    width, height = image.size
    if image.getpixel((width - 1, height - 1)) not in (0, (0, 0), (0, 0, 0), (0, 0, 0, 0)):
        return False
    return image.crop((0, height - 1, width, height)).getbbox() is None


def keyed_sixteen_bit(encoded: bytes, transparent: tuple[int, int, int]) -> Image.Image:
    """A 16-bit RGB PNG as RGBA; 8 bits do not separate its transparent colour from similar ones."""
    rgb = sixteen_bit_rgb(encoded)
    alpha = np.uint8(255) * (rgb != transparent).any(-1, keepdims=True)
    return Image.fromarray(np.concatenate([(rgb >> 8).astype(np.uint8), alpha], -1))


def flat(image: Image.Image, profile: bytes = b"") -> Image.Image:
    """`image` as 8-bit sRGB on white; `profile`: the ICC profile of its values, b"" for sRGB."""
    colour, alpha = separate(image)
    rgb = to_srgb(colour, profile)
    if alpha is None:
        return rgb
    rgb.putalpha(alpha)
    return Image.alpha_composite(Image.new("RGBA", rgb.size, "white"), rgb).convert("RGB")


def separate(image: Image.Image) -> tuple[Image.Image, Image.Image | None]:
    """Colour (mode L, RGB or CMYK) and alpha (mode L), None where all is opaque."""
    if image.mode.startswith("I"):  # 16-bit gray, which convert() would clip instead of scale
        values = np.asarray(image).astype(np.int64)
        transparent = image.info.get("transparency")
        alpha = None if transparent is None else Image.fromarray(np.uint8(255) * (values != transparent))
        return Image.fromarray((values >> 8).clip(0, 255).astype(np.uint8)), alpha
    gray = image.mode in ("1", "L", "LA", "La", "F")
    if not image.has_transparency_data:
        if image.mode in ("L", "RGB", "CMYK"):
            return image, None
        return image.convert("L" if gray else "RGB"), None
    rgba = (image.convert("LA") if image.mode == "La" else image).convert("RGBA")
    return rgba.getchannel("R") if gray else rgba.convert("RGB"), rgba.getchannel("A")


def fit(image: Image.Image, resolution: int) -> Image.Image:
    """The centre square, resized with antialiasing; a square of that size keeps its pixels unchanged."""
    return ImageOps.fit(image, (resolution, resolution), Image.Resampling.LANCZOS)


def encode(image: Image.Image) -> bytes:
    """Lossless PNG; lightly compressed, for speed."""
    encoded = io.BytesIO()
    image.save(encoded, format="png", compress_level=1)
    return encoded.getvalue()
