"""Encoded files to upright RGB squares."""

import io
import warnings

from PIL import Image, ImageOps, UnidentifiedImageError

FORMATS = ("JPEG", "PNG", "WEBP")


class BadPicture(Exception):
    """A file that is no usable picture; `reason` is a fixed phrase, `detail` says more."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason, self.detail = reason, detail


def decode(encoded: bytes) -> Image.Image:
    """The picture as RGB, turned as its EXIF orientation says, transparency laid on white.

    Only jpeg, png and webp are tried, so that no exotic decoder meets foreign bytes. Raises
    BadPicture for anything else, for a corrupt or truncated file, and for more pixels than
    `PIL.Image.MAX_IMAGE_PIXELS`, which is found from the header, before memory is taken.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            image = Image.open(io.BytesIO(encoded), formats=FORMATS)
        return flat(ImageOps.exif_transpose(image))
    except (Image.DecompressionBombWarning, Image.DecompressionBombError) as error:
        raise BadPicture("decompression bomb", str(error)) from None
    except UnidentifiedImageError:
        raise BadPicture("corrupt picture", "no jpeg, png or webp file") from None
    except Exception as error:
        raise BadPicture("corrupt picture", str(error)) from None


def flat(image: Image.Image) -> Image.Image:
    """`image` as 8-bit RGB."""
    if image.has_transparency_data:
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    if image.mode.startswith("I"):  # 16-bit gray, which convert() would clip instead of scale
        image = image.point(lambda value: value / 256).convert("L")
    return image.convert("RGB")


def fit(image: Image.Image, resolution: int) -> Image.Image:
    """The centre square, resized with antialiasing; a square of that size keeps its very pixels."""
    return ImageOps.fit(image, (resolution, resolution), Image.Resampling.LANCZOS)


def encode(image: Image.Image) -> bytes:
    """Lossless PNG; lightly compressed, for speed."""
    encoded = io.BytesIO()
    image.save(encoded, format="png", compress_level=1)
    return encoded.getvalue()
