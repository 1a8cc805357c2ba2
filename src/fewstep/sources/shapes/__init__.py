"""The built-in default source: captioned procedural images, shape x colour x size x background.

Image i is a function of (seed, i) alone. The caption does not state in which of four places the shape lies,
nor its tint: these are the hidden attributes. A model that takes one step can only average them, one that
takes many steps can pick one. Radius and the exact position vary too.
"""

import io
import math
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from fewstep.config.data import DataConfig
from fewstep.core.keyed import Key
from fewstep.sources.sample import Sample
from fewstep.sources.units import RUN, Unit

SHAPES = ("circle", "square", "triangle", "star")
COLOURS = {
    "red": (220, 40, 40),
    "green": (40, 180, 60),
    "blue": (50, 80, 225),
    "yellow": (240, 215, 40),
}
SIZES = {"small": (0.20, 0.23), "large": (0.32, 0.36)}  # radius as a share of the image's side
BACKGROUNDS = {
    "black": (20, 20, 20),
    "white": (240, 240, 240),
    "blue": COLOURS["blue"],
}
LABELS = {
    "shape": SHAPES,
    "colour": tuple(COLOURS),
    "size": tuple(SIZES),
    "background": tuple(BACKGROUNDS),
}
COMBINATIONS = [c for c in product(SHAPES, COLOURS, SIZES, BACKGROUNDS) if c[1] != c[3]]
PLACES = (0.38, 0.62)  # positions of the centre, across and down, as shares of the side
DRIFT = 0.03  # maximum offset of the centre from its place
TINTS = {"darker": -12, "lighter": 12}  # offset of the shape's colour, in 1/255
SHADE = 6  # standard deviation of a colour around its mean, in 1/255
OVERSAMPLING = 4


def caption_of(shape: str, colour: str, size: str, background: str) -> str:
    """The caption, e.g. "a small red star on a blue background"."""
    return f"a {size} {colour} {shape} on a {background} background"


def outline(shape: str) -> list[tuple[float, float]]:
    """Corners of a polygonal shape of radius 1 around the origin."""

    def corner(radius: float, turn: float) -> tuple[float, float]:
        phi = turn * 2 * math.pi - math.pi / 2
        return radius * math.cos(phi), radius * math.sin(phi)

    if shape == "square":
        return [corner(1.0, (i + 0.5) / 4) for i in range(4)]
    if shape == "triangle":
        return [corner(1.0, i / 3) for i in range(3)]
    return [corner(0.42 if i % 2 else 1.0, i / 10) for i in range(10)]


@dataclass(frozen=True)
class Details:
    """What the caption does not specify.

    radius, x, y: shares of the side. ink, ground: RGB in 0..255. hidden: the hidden attributes by name.
    """

    radius: float
    x: float
    y: float
    ink: tuple[int, int, int]
    ground: tuple[int, int, int]
    hidden: dict[str, str]


def details_of(colour: str, size: str, background: str, rng: np.random.Generator) -> Details:
    """Draw the details of one image."""
    radius = rng.uniform(*SIZES[size])
    across, down = rng.integers(len(PLACES), size=2)
    x, y = np.take(PLACES, (across, down)) + rng.uniform(-DRIFT, DRIFT, 2)
    tint = sorted(TINTS)[rng.integers(len(TINTS))]
    means = np.add((COLOURS[colour], BACKGROUNDS[background]), ([TINTS[tint]], [0]))
    ink, ground = np.clip(rng.normal(means, SHADE), 0, 255).astype(int).tolist()
    hidden = {
        "place": f"{('top', 'bottom')[down]} {('left', 'right')[across]}",
        "tint": tint,
    }
    return Details(radius, x, y, tuple(ink), tuple(ground), hidden)


def draw(shape: str, details: Details, resolution: int) -> Image.Image:
    """Draw one image, RGB, `resolution` x `resolution`, antialiased."""
    side, radius, x, y = resolution * OVERSAMPLING, details.radius, details.x, details.y
    image = Image.new("RGB", (side, side), details.ground)
    pen = ImageDraw.Draw(image)
    if shape == "circle":
        box = (x - radius, y - radius, x + radius, y + radius)
        pen.ellipse([v * side for v in box], fill=details.ink)
    else:
        corners = [((x + radius * u) * side, (y + radius * v) * side) for u, v in outline(shape)]
        pen.polygon(corners, fill=details.ink)
    return image.resize((resolution, resolution), Image.Resampling.BOX)


def inputs(config: DataConfig) -> list[Path]:
    """None: nothing lies outside the project."""
    return []


def count(config: DataConfig) -> int | None:
    """The number that is configured."""
    return config.count


def expected(config: DataConfig) -> str:
    """A number: nothing else is needed."""
    return "data.count"


def units(config: DataConfig, seed: int) -> Iterator[Unit]:
    """Ranges of the indices below `config.count`; the content of a unit is its first index and its end."""
    assert config.count is not None
    for first in range(0, config.count, RUN):
        end = min(first + RUN, config.count)
        yield Unit(f"shapes {first} to {end - 1}", (first, end), samples=end - first)


def read(unit: Unit, config: DataConfig, seed: int) -> Iterator[Sample]:
    """The images of a range; the combinations are drawn uniformly, keyed by (seed, index)."""
    for i in range(*unit.content):
        yield sample(i, config.resolution, seed)


def samples(config: DataConfig, seed: int) -> Iterator[Sample]:
    """`config.count` images."""
    for unit in units(config, seed):
        yield from read(unit, config, seed)


def sample(i: int, resolution: int, seed: int) -> Sample:
    """Image i, `resolution` x `resolution`."""
    rng = Key(seed, "shapes").generator(i)
    attributes = COMBINATIONS[int(rng.integers(len(COMBINATIONS)))]
    shape, colour, size, background = attributes
    details = details_of(colour, size, background, rng)
    encoded = io.BytesIO()
    draw(shape, details, resolution).save(encoded, format="png", compress_level=1)
    return Sample(
        name=f"shapes/{i:08d}",
        image=encoded.getvalue(),
        caption=caption_of(*attributes),
        labels=dict(zip(LABELS, attributes, strict=True)),
        hidden=details.hidden,
    )
