"""Tests the evaluation on degenerate samplers; prints their figures next to those of the chain's models.

    dvc repro && python benchmarks/degenerate.py

For the default data (`data.source: shapes`), whose perfect sampler is known: the generator itself with fresh
randomness. Prints a row for each sampler: kernel and layout distance with their intervals, and the flags.
docs/metrics.md has the table.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from PIL import ImageFilter
from torch import Tensor

from fewstep.config.base import read
from fewstep.core.hardware import device
from fewstep.core.keyed import Key
from fewstep.core.paths import DATA, EVALUATION_SET, METRICS
from fewstep.data.shards import open_images, read_index
from fewstep.evaluation.figures import figures
from fewstep.evaluation.flags import flags
from fewstep.evaluation.observations import observe
from fewstep.evaluation.record import read_record
from fewstep.evaluation.schema import Figures, Metrics, Reference
from fewstep.evaluation.stored_set import load
from fewstep.features.network import open_features
from fewstep.sources.shapes import PLACES, caption_of, details_of, draw

BLUR = 1.0
"""Standard deviation of the blur, pixels."""
SATURATION = 1.5
KEY = Key(0, "degenerate")

Labels = Mapping[str, str]
Sampler = Callable[[Labels, int, int], np.ndarray]
"""(labels of the prompt, index of the noise, resolution) -> uint8 `[H, W, 3]`."""


def perfect(labels: Labels, i: int, resolution: int) -> np.ndarray:
    """The generator with fresh randomness."""
    details = details_of(labels["colour"], labels["size"], labels["background"], KEY.generator(i))
    return np.asarray(draw(labels["shape"], details, resolution))


def fixed(labels: Labels, i: int, resolution: int) -> np.ndarray:
    """One image per caption, whatever the noise."""
    return perfect(
        labels, sum(ord(letter) << k for k, letter in enumerate("".join(labels.values()))), resolution
    )


def top_left(labels: Labels, i: int, resolution: int) -> np.ndarray:
    """The shape is always at the same one of the four places."""
    details = details_of(labels["colour"], labels["size"], labels["background"], KEY.generator(i))
    moved = replace(details, x=min(details.x, PLACES[0]), y=min(details.y, PLACES[0]))
    return np.asarray(draw(labels["shape"], moved, resolution))


def middle(labels: Labels, i: int, resolution: int) -> np.ndarray:
    """The shape is in the middle, between the four places."""
    details = details_of(labels["colour"], labels["size"], labels["background"], KEY.generator(i))
    return np.asarray(draw(labels["shape"], replace(details, x=0.5, y=0.5), resolution))


def blurred(labels: Labels, i: int, resolution: int) -> np.ndarray:
    """The perfect image, blurred."""
    details = details_of(labels["colour"], labels["size"], labels["background"], KEY.generator(i))
    return np.asarray(draw(labels["shape"], details, resolution).filter(ImageFilter.GaussianBlur(BLUR)))


def saturated(labels: Labels, i: int, resolution: int) -> np.ndarray:
    """The perfect image with its colours further from grey."""
    image = perfect(labels, i, resolution).astype(float)
    grey = image.mean(2, keepdims=True)
    return (grey + SATURATION * (image - grey)).clip(0, 255).round().astype(np.uint8)


def noise(labels: Labels, i: int, resolution: int) -> np.ndarray:
    """Uniform noise instead of an image."""
    return KEY.generator(i).integers(256, size=(resolution, resolution, 3), dtype=np.uint8)


def drawn(sampler: Sampler, labels: Sequence[Labels], resolution: int) -> Tensor:
    """One image per prompt."""
    return torch.from_numpy(np.stack([sampler(row, i, resolution) for i, row in enumerate(labels)]))


def shuffled(labels: Sequence[Labels]) -> list[Labels]:
    """The prompts in another order."""
    return [labels[i] for i in Key(0, "degenerate/order").permutation(0, len(labels))]


def memorised(data: Path, prompts: Sequence[str]) -> Tensor:
    """Training images with the prompts' captions; they repeat only when a caption has no unused one."""
    images = open_images(data, "train", Key(0, "degenerate/training"))
    by_caption: dict[str, list[np.ndarray]] = {}
    for image in images.rows(range(images.total)):
        by_caption.setdefault(image.caption, []).append(image.pixels)
    taken = dict.fromkeys(by_caption, 0)
    chosen = []
    for prompt in prompts:
        matching = by_caption[prompt]
        chosen.append(matching[taken[prompt] % len(matching)])
        taken[prompt] += 1
    return torch.from_numpy(np.stack(chosen))


def degenerate(labels: Sequence[Labels], resolution: int, data: Path) -> dict[str, Tensor]:
    """Every sampler's images, uint8 `[N, H, W, 3]`; the perfect one comes first."""
    singly = (perfect, fixed, top_left, middle, blurred, saturated, noise)
    images = {sampler.__name__: drawn(sampler, labels, resolution) for sampler in singly}
    images["shuffled captions"] = drawn(perfect, shuffled(labels), resolution)
    captions = [caption_of(row["shape"], row["colour"], row["size"], row["background"]) for row in labels]
    return images | {"training images": memorised(data, captions)}


def row(name: str, measured: Figures, reference: Reference) -> str:
    """One line of the table."""
    distance, layout = measured.kernel_distance, measured.layout_distance
    accuracy = f"{measured.prompt_accuracy.value:.3f}" if measured.prompt_accuracy else ""
    return (
        f"| {name} | {distance.value:.4f} ({distance.low:.4f} - {distance.high:.4f}) | {layout.value:.4f} "
        f"({layout.low:.4f} - {layout.high:.4f}) | {measured.frechet_distance:.3f} | {accuracy} "
        f"| {'; '.join(flags(measured, reference))} |"
    )


def main() -> None:
    """Print the table."""
    on, network = load(EVALUATION_SET), open_features(read(Path, "features")).to(device())
    prompts = on.prompts.prompts
    known = {prompts[i]: labels for i, labels in enumerate(on.yardstick.labels) if labels}
    labels = [known[prompt] for prompt in prompts]
    print("| sampler | kernel distance | layout distance | Frechet distance | accuracy | flags |")
    print("|---|---|---|---|---|---|")
    for name, images in degenerate(labels, read_index(DATA).resolution, DATA).items():
        measured = figures(observe(images, network, prompts), on.yardstick)
        print(row(name, measured, on.reference), flush=True)
    for file in sorted(METRICS.glob("*.json")):
        for steps, metrics in read_record(Metrics, file).steps.items():
            print(row(f"{file.stem}, {steps}", metrics, on.reference), flush=True)


if __name__ == "__main__":
    main()
