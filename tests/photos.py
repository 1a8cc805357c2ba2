"""Real photographs with captions, without a download: crops of the images inside three wheels."""

from pathlib import Path

import matplotlib as mpl
import skimage
import sklearn.datasets
from PIL import Image, ImageOps

from fewstep.core.keyed import Key

SKIMAGE = Path(skimage.__file__).parent / "data"
SKLEARN = Path(sklearn.datasets.__file__).parent / "images"
MATPLOTLIB = Path(mpl.get_data_path()) / "sample_data"
PHOTOGRAPHS = {
    SKIMAGE / "astronaut.png": "an astronaut in an orange suit",
    SKIMAGE / "chelsea.png": "a ginger cat",
    SKIMAGE / "coffee.png": "a cup of coffee on a table",
    SKIMAGE / "rocket.jpg": "a rocket at launch",
    SKIMAGE / "motorcycle_left.png": "a motorcycle in a garage",
    SKLEARN / "china.jpg": "a Chinese temple",
    SKLEARN / "flower.jpg": "a dahlia in bloom",
    MATPLOTLIB / "grace_hopper.jpg": "a navy officer in uniform",
}
SIDES = (140, 296)
EXIF_ORIENTATION = 0x0112


def make_photo_folder(path: Path, count: int) -> None:
    """`count` distinct crops `000.jpg ...` with `.txt` captions; image i depends on i alone.

    Of every eight, one is stored sideways with an EXIF orientation, one is gray, one is a PNG with
    transparent corners and one a WEBP; the others are plain JPEGs.
    """
    path.mkdir(parents=True)
    for i in range(count):
        source, subject = list(PHOTOGRAPHS.items())[i % len(PHOTOGRAPHS)]
        with Image.open(source) as photograph:
            crop = crop_of(photograph.convert("RGB"), i)
        save(crop, path / f"{i:03d}", kind=(i + i // 8) % 8)
        (path / f"{i:03d}.txt").write_text(f"a photograph of {subject}\n")


def crop_of(photograph: Image.Image, i: int) -> Image.Image:
    """A part of `photograph` of random place and size."""
    rng = Key(0, "photos").generator(i)
    width, height = (int(side) for side in rng.integers(*SIDES, 2))
    x, y = int(rng.integers(photograph.width - width)), int(rng.integers(photograph.height - height))
    return photograph.crop((x, y, x + width, y + height))


def save(image: Image.Image, stem: Path, kind: int) -> None:
    """Write `image` in one of eight ways."""
    if kind == 1:
        exif = Image.Exif()
        exif[EXIF_ORIENTATION] = 6  # "turn by 90 degrees clockwise to view"
        image.transpose(Image.Transpose.ROTATE_90).save(stem.with_suffix(".jpg"), quality=92, exif=exif)
    elif kind == 2:
        ImageOps.grayscale(image).save(stem.with_suffix(".jpg"), quality=92)
    elif kind == 3:
        image.putalpha(Image.radial_gradient("L").resize(image.size).point(lambda v: 255 - v))
        image.save(stem.with_suffix(".png"))
    elif kind == 4:
        image.save(stem.with_suffix(".webp"), quality=92)
    else:
        image.save(stem.with_suffix(".jpg"), quality=92)
