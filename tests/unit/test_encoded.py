"""Encoded data: the same tensors as encoding on the spot, each shard made once."""

from collections.abc import Mapping
from pathlib import Path

import pytest
import torch

from fewstep.artifacts.workspace import Workspace
from fewstep.backbones.model import open_model
from fewstep.backbones.protocol import Backbone
from fewstep.backbones.registry import open_backbone
from fewstep.config.data import DataConfig
from fewstep.config.evaluate import EvaluationSetConfig
from fewstep.config.sampling import SamplingConfig
from fewstep.core.errors import UserError
from fewstep.core.keyed import Key
from fewstep.core.paths import TEACHER
from fewstep.data.encoded import open_encoded
from fewstep.data.pixels import image_batch
from fewstep.data.prompted import collate_rows
from fewstep.data.shards import open_images
from fewstep.evaluation.evaluation_set import make as make_evaluation_set
from fewstep.features.network import open_features
from fewstep.preparation.prepare import prepare
from fewstep.sampling.draw import Sampler
from fewstep.sampling.encode import encode_split
from tests.miniature import imported

ORDER = Key(0, "order")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Prepared images."""
    folder = tmp_path_factory.mktemp("prepared") / "data"
    config = DataConfig(source="shapes", count=40, resolution=64, heldout=0.25, shard_size=8)
    prepare(config, 0, folder, lambda done: None)
    return folder


@pytest.fixture
def made(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> tuple[Backbone, Path, Mapping[str, Path]]:
    """A teacher and prepared images."""
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "no")
    monkeypatch.chdir(tmp_path)
    teacher = imported("sd") / TEACHER
    return open_backbone(teacher), data, {"data": data, "teacher": teacher}


def work() -> Workspace:
    """The stage's unfinished work, in the current folder."""
    return Workspace("encode_data@train", {}, {})


@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 0.0), ("float16", 1e-3)])
def test_what_is_read_is_what_the_backbone_encodes(
    made: tuple[Backbone, Path, Mapping[str, Path]], tmp_path: Path, dtype: str, tolerance: float
) -> None:
    backbone, data, made_from = made
    encode_split(tmp_path / "out", backbone, data, "train", dtype, work(), made_from)
    images = open_images(data, "train", ORDER)
    encoded = open_encoded(tmp_path / "out", ORDER)
    assert encoded.total == images.total
    positions = range(3, 40, 5)
    x_0, conditions = collate_rows(encoded.rows(positions), torch.device("cpu"))
    rows = images.rows(positions)
    with torch.no_grad():
        latents = backbone.encode(image_batch(rows))
        text = backbone.encode_prompts([row.caption for row in rows])["text"]
    # Batches of other sizes may differ in the last bit.
    torch.testing.assert_close(x_0, latents, atol=max(tolerance, 1e-5), rtol=tolerance)
    torch.testing.assert_close(conditions["text"], text, atol=max(tolerance, 1e-5), rtol=tolerance)


def test_finished_shards_are_not_encoded_again(
    made: tuple[Backbone, Path, Mapping[str, Path]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    backbone, data, made_from = made
    encode, calls = backbone.encode, []

    def counted(images: torch.Tensor) -> torch.Tensor:
        if len(images) == 1:  # whose shape is looked at before the first shard
            return encode(images)
        calls.append(len(images))
        if len(calls) == 3:
            raise KeyboardInterrupt
        return encode(images)

    monkeypatch.setattr(backbone, "encode", counted)
    arguments = (backbone, data, "train", "float32", work(), made_from)
    with pytest.raises(KeyboardInterrupt):
        encode_split(tmp_path / "out", *arguments)
    assert not (tmp_path / "out").exists()
    encode_split(tmp_path / "out", *arguments)
    total = open_encoded(tmp_path / "out", ORDER).total
    assert sum(calls) - calls[2] == total


def test_images_of_another_size_than_the_teachers_are_refused(
    made: tuple[Backbone, Path, Mapping[str, Path]], tmp_path: Path
) -> None:
    backbone, _, made_from = made
    prepare(DataConfig(source="shapes", count=40, resolution=32, heldout=0.5), 0, tmp_path / "small")
    with pytest.raises(UserError, match=r"data\.resolution: images of 32 are latents of 4.*are of 8"):
        encode_split(tmp_path / "out", backbone, tmp_path / "small", "train", "float32", work(), made_from)
    teacher = Sampler(
        open_model(made_from["teacher"], backbone), backbone, SamplingConfig(steps=1, guidance=1.0)
    )
    features = open_features(made_from["teacher"])
    config = EvaluationSetConfig(pictures=8, reference=8, grid=2)
    with pytest.raises(UserError, match=r"data\.resolution = 32: this teacher draws at 64; set it so"):
        make_evaluation_set(config, tmp_path / "small", teacher, features, 0)
