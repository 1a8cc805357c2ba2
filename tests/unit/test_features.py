"""The classifier and the other feature networks: what they promise, how they lie on disk, what is refused."""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL
from PIL import Image
from tools.imports import SRC
from torch import Tensor, nn

from fewstep.artifacts.manifest import NAME, Manifest
from fewstep.core.errors import UserError
from fewstep.core.files import write_json
from fewstep.core.keyed import Key
from fewstep.features import inception
from fewstep.features.attribute_classifier import AttributeClassifier
from fewstep.features.inception import InceptionFeatures
from fewstep.features.network import open_features
from fewstep.sources.shapes import LABELS


def images(count: int, side: int = 32) -> Tensor:
    uniform = Key(0, "test/pictures").uniform(range(count), 3 * side * side)
    return torch.from_numpy(uniform).float().reshape(count, 3, side, side) * 2 - 1


@pytest.fixture
def classifier() -> AttributeClassifier:
    torch.manual_seed(0)
    return AttributeClassifier(LABELS, widths=(8, 16, 24), feature_dim=10).eval()


@pytest.fixture
def classifier_folder(classifier: AttributeClassifier, tmp_path: Path) -> Path:
    classifier.save(tmp_path / "judge", resolution=32, inputs={})
    return tmp_path / "judge"


@pytest.fixture
def teacher_folder(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    vae = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        block_out_channels=(8, 16),
        norm_num_groups=4,
    )
    vae.save_pretrained(tmp_path / "teacher" / "vae")
    Manifest.seal(tmp_path / "teacher", "teacher", {}, {})
    return tmp_path / "teacher"


@pytest.mark.parametrize("side", [8, 32, 40])
def test_a_classifier_answers_every_attribute_at_any_size(classifier: AttributeClassifier, side: int) -> None:
    x = images(2, side)
    assert {attribute: logits.shape for attribute, logits in classifier(x).items()} == {
        attribute: (2, len(values)) for attribute, values in LABELS.items()
    }
    assert [m.shape for m in classifier.maps(x)] == [
        (2, width, side >> i, side >> i) for i, width in enumerate((8, 16, 24))
    ]
    for seen in classifier.recognise(x):
        assert all(seen[attribute] in values for attribute, values in LABELS.items())


def test_a_classification_depends_on_no_other_image(classifier: AttributeClassifier) -> None:
    x = images(4)
    torch.testing.assert_close(classifier.features(x)[2:3], classifier.features(x[2:3]))
    assert classifier.recognise(x)[2:3] == classifier.recognise(x[2:3])


def test_a_classifier_learns_to_distinguish_black_from_white() -> None:
    torch.manual_seed(0)
    classifier = AttributeClassifier({"shade": ("black", "white")}, widths=(8, 8), feature_dim=4)
    x = torch.cat([images(8, 8) * 0.2 - 0.8, images(8, 8) * 0.2 + 0.8])
    wanted = torch.tensor([0] * 8 + [1] * 8)
    optimizer = torch.optim.Adam(classifier.parameters(), 0.02)
    for _ in range(20):
        optimizer.zero_grad()
        nn.functional.cross_entropy(classifier(x)["shade"], wanted).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    assert [seen["shade"] for seen in classifier.recognise(x)] == ["black"] * 8 + ["white"] * 8


def test_a_classifier_survives_the_disk(classifier: AttributeClassifier, classifier_folder: Path) -> None:
    opened, x = AttributeClassifier.open(classifier_folder), images(2)
    assert opened.labels == classifier.labels
    assert opened.recognise(x) == classifier.recognise(x)
    assert torch.equal(opened.features(x), classifier.features(x))
    metadata = Manifest.open(classifier_folder, "judge").facts
    assert metadata["parameters"] == sum(weight.numel() for weight in classifier.parameters())
    assert (metadata["feature_dim"], metadata["resolution"]) == (10, 32)


def test_saving_twice_gives_the_same_bytes(
    classifier: AttributeClassifier, classifier_folder: Path, tmp_path: Path
) -> None:
    classifier.to(memory_format=torch.channels_last).save(tmp_path / "again", resolution=32, inputs={})
    for file in classifier_folder.iterdir():
        assert file.read_bytes() == (tmp_path / "again" / file.name).read_bytes()


@pytest.mark.parametrize("name", ["model.safetensors", "config.json"])
def test_a_changed_byte_is_refused_by_name(classifier_folder: Path, name: str) -> None:
    content = bytearray((classifier_folder / name).read_bytes())
    content[-2] ^= 1
    (classifier_folder / name).write_bytes(content)
    with pytest.raises(UserError, match=name):
        AttributeClassifier.open(classifier_folder)


def test_weights_of_another_network_are_refused(classifier_folder: Path) -> None:
    """Sealed anew, so that only the weights' own check can see it."""
    write_json(
        classifier_folder / "config.json", {"labels": LABELS, "widths": [8, 16, 32], "feature_dim": 10}
    )
    (classifier_folder / NAME).unlink()
    Manifest.seal(classifier_folder, "judge", {}, {})
    with pytest.raises(UserError, match="not this network's weights"):
        AttributeClassifier.open(classifier_folder)


def test_what_lies_at_the_path_decides_the_network(classifier_folder: Path, teacher_folder: Path) -> None:
    for path, name, dimension in ((classifier_folder, "judge", 10), (teacher_folder, "autoencoder", 16)):
        network, x = open_features(path), images(2).requires_grad_()
        assert (network.name, network.features(x).shape) == (name, (2, dimension))
        assert network.kernel == "polynomial"
        sides = [m.shape[-1] for m in network.maps(x)]
        assert sides == sorted(sides, reverse=True)
        sum(m.square().mean() for m in network.maps(x)).backward()  # type: ignore[union-attr]
        assert x.grad is not None and x.grad.abs().sum() > 0
        assert isinstance(network, nn.Module) and not network.training
        assert not any(weight.requires_grad for weight in network.parameters())


def test_everything_else_is_refused_with_a_way_out(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("no network")
    (tmp_path / "empty").mkdir()
    (tmp_path / "made").mkdir()
    Manifest.seal(tmp_path / "made", "triplets", {}, {})
    for path, kind in (
        ("absent", "nothing"),
        ("notes.txt", r"file notes\.txt"),
        ("empty", "something else"),
        ("made", "artifact triplets"),
    ):
        with pytest.raises(UserError, match=f"found {kind}$") as refused:
            open_features(tmp_path / path)
        for known in ("artifact judge", "artifact teacher", f"file {inception.FILE}", "model_type clip"):
            assert known in str(refused.value)


PLUGIN = """
from fewstep.features.layout import Layout

class Mean(Layout):
    opens = ("model_type mean",)

    @classmethod
    def open(cls, path):
        return cls()
"""


def test_a_new_feature_network_is_a_new_file(tmp_path: Path) -> None:
    """In a copy of the package, opened by a fresh process: nothing but the file is added."""
    shutil.copytree(SRC, tmp_path / "src", ignore=shutil.ignore_patterns("__pycache__"))
    (tmp_path / "src/fewstep/features/mean.py").write_text(PLUGIN)
    write_json(tmp_path / "network/config.json", {"model_type": "mean"})
    code = (
        "from pathlib import Path; from fewstep.features.network import open_features;"
        "network = open_features(Path('network')); print(type(network).__name__, network.kernel)"
    )
    environment = os.environ | {"PYTHONPATH": str(tmp_path / "src")}
    command = [sys.executable, "-c", code]
    result = subprocess.run(
        command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=True
    )
    assert result.stdout.split() == ["Mean", "polynomial"]


def test_a_teacher_without_an_autoencoder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "unet").mkdir()
    Manifest.seal(tmp_path, "teacher", {}, {})
    with pytest.raises(UserError, match="no vae/"):
        open_features(tmp_path)


class StandIn(nn.Module):
    """The outside of the published file: `layers` maps normalised 299 x 299 images to 2048 numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.AdaptiveAvgPool2d((32, 32)), nn.Flatten(), nn.Linear(3 * 32 * 32, 2048)
        )


@pytest.fixture
def script(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    traced: Callable[[nn.Module], Any] = torch.jit.script
    traced(StandIn()).save(str(tmp_path / inception.FILE))
    return tmp_path / inception.FILE


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_inception_sees_images_as_clean_fid_does(script: Path) -> None:
    network, x = InceptionFeatures(script.parent), images(2)
    features = network.features(x)
    for row, image in zip(features, x, strict=True):
        rounded = ((image.permute(1, 2, 0).numpy() + 1) * 127.5).round().astype(np.uint8)
        channels = [
            np.asarray(
                Image.fromarray(rounded[..., c].astype(np.float32), "F").resize(
                    (299, 299), Image.Resampling.BICUBIC
                )
            )
            for c in range(3)
        ]
        resized = torch.from_numpy(np.stack(channels)[None]).clip(0, 255)
        torch.testing.assert_close(row, network.network.layers((resized - 128) / 128)[0])
    with pytest.raises(UserError, match="no feature maps"):
        network.maps(x)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_inception_is_the_published_file_or_nothing(script: Path) -> None:
    with pytest.raises(UserError, match="not the published file"):
        open_features(script)
