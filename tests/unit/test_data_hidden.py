"""Hidden attributes: what captions leave open, from the source to the prepared data and the classifier."""

import json
from pathlib import Path

import numpy as np
import torch

from fewstep.config.data import DataConfig
from fewstep.core.keyed import Key
from fewstep.data.shards import ImageRecord, open_images, read_index
from fewstep.preparation.prepare import prepare
from fewstep.pretraining.classifier import UNKNOWN, known_entropy, rows_of
from fewstep.sources.shapes import BACKGROUNDS, COLOURS
from tests.images import saved


def prepared(config: DataConfig, out: Path) -> list[ImageRecord]:
    prepare(config, 0, out)
    images: list[ImageRecord] = []
    for split in ("train", "heldout"):
        stream = open_images(out, split, Key(0, "order"))
        images += stream.rows(range(stream.total))
    return images


def test_shapes_lie_where_their_hidden_attributes_say(tmp_path: Path) -> None:
    images = prepared(DataConfig(source="shapes", count=200, resolution=32, heldout=0.3), tmp_path / "data")
    index = read_index(tmp_path / "data")
    assert index.hidden is not None and index.hidden.keys() == {"place", "tint"}
    brighter: dict[str, list[float]] = {"lighter": [], "darker": []}
    for image in images:
        assert image.labels and image.hidden
        base, ground = COLOURS[image.labels["colour"]], BACKGROUNDS[image.labels["background"]]
        pixels = image.pixels.astype(float)
        near_ink = np.abs(pixels - base).sum(2) < np.abs(pixels - ground).sum(2)
        rows, columns = np.nonzero(near_ink)
        down = "top" if (rows.min() + rows.max()) / 2 < 15.5 else "bottom"
        across = "left" if (columns.min() + columns.max()) / 2 < 15.5 else "right"
        assert image.hidden["place"] == f"{down} {across}", image.caption
        inside = pixels[int(rows.mean()), int(columns.mean())]
        brighter[image.hidden["tint"]].append(float((inside - base).mean()))
    assert np.mean(brighter["lighter"]) > 8 and np.mean(brighter["darker"]) < -8


def test_a_folders_table_may_hold_them(tmp_path: Path) -> None:
    photos = tmp_path / "photos"
    photos.mkdir()
    rows = []
    for i in range(12):
        (photos / f"{i}.png").write_bytes(
            saved(np.random.default_rng(i).integers(256, size=(32, 32, 3), dtype=np.uint8))
        )
        hidden = {"pose": "left" if i % 2 else "right"} if i else None
        rows.append(
            {"file_name": f"{i}.png", "caption": f"image {i}", "labels": {"n": str(i)}, "hidden": hidden}
        )
    (photos / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = DataConfig(source="folder", path=str(photos), resolution=16, heldout=0.4)
    images = prepared(config, tmp_path / "data")
    assert read_index(tmp_path / "data").hidden == {"pose": ("left", "right")}
    assert sum(image.hidden is None for image in images) == 1


def test_unknown_values_cost_nothing() -> None:
    logits = torch.tensor([[2.0, 0.0], [0.0, 5.0]])
    both = known_entropy(logits, torch.tensor([0, UNKNOWN]))
    assert both == known_entropy(logits[:1], torch.tensor([0]))
    assert known_entropy(logits, torch.tensor([UNKNOWN, UNKNOWN])) == 0


def test_labels_and_hidden_attributes_are_learned_together(tmp_path: Path) -> None:
    (first, *_) = prepared(
        DataConfig(source="shapes", count=40, resolution=16, heldout=0.3), tmp_path / "data"
    )
    (row,) = rows_of([first])
    assert row.keys() == {"shape", "colour", "size", "background", "place", "tint"}
