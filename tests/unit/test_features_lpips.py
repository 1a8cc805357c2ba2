"""LPIPS against an independent implementation, torch-fidelity's; random weights in the published formats."""

import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch_fidelity import sample_similarity_lpips as reference
from torchvision import models

from fewstep.checks.settings import feature_width
from fewstep.checks.teacher import Known
from fewstep.core.errors import UserError
from fewstep.core.keyed import Key
from fewstep.data.triplets import TripletBatch
from fewstep.diffusion.denoiser import Denoiser, Prediction
from fewstep.diffusion.schedules import RectifiedFlow
from fewstep.features.network import open_features
from fewstep.losses.perceptual import perceptual_distance
from fewstep.methods.direct import Config, Direct

NAMES = {"vgg": "vgg16-397923af.pth", "alex": "alexnet-owt-7be5be79.pth"}
WIDTHS = {"vgg": (64, 128, 256, 512, 512), "alex": (64, 192, 384, 256, 256)}


def layers_of(net: str) -> nn.Sequential:
    """Convolutions with random weights."""
    with torch.device("meta"):
        layers: nn.Sequential = {"vgg": models.vgg16, "alex": models.alexnet}[net]().features
    layers.to_empty(device="cpu")
    for layer in layers:
        if isinstance(layer, nn.Conv2d):
            nn.init.kaiming_normal_(layer.weight)
            nn.init.normal_(layer.bias, std=0.1)  # type: ignore[arg-type]
    return layers


@pytest.fixture(scope="module", params=NAMES)
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The two files of a network."""
    return write(request.param, tmp_path_factory.mktemp("lpips") / request.param)


def write(net: str, folder: Path) -> Path:
    """Write the two files of a network."""
    folder.mkdir()
    torch.manual_seed(0)
    weights = {f"features.{name}": value for name, value in layers_of(net).state_dict().items()}
    # torchvision's files also hold the layers behind the features.
    torch.save(weights | {"classifier.6.bias": torch.zeros(1000)}, folder / NAMES[net])
    linear = {f"lin{i}.model.1.weight": torch.rand(1, c, 1, 1) for i, c in enumerate(WIDTHS[net])}
    torch.save(linear, folder / f"{net}.pth")
    return folder


@pytest.fixture
def other(folder: Path, tmp_path: Path) -> Path:
    """A copy that a test may damage; links where it is not."""
    for file in folder.iterdir():
        (tmp_path / "lpips").mkdir(exist_ok=True)
        (tmp_path / "lpips" / file.name).symlink_to(file)
    return tmp_path / "lpips"


def images(count: int, side: int = 48) -> Tensor:
    uniform = Key(0, "test/images").uniform(range(count), 3 * side * side)
    return torch.from_numpy(uniform).float().reshape(count, 3, side, side) * 2 - 1


def published(folder: Path, x: Tensor, y: Tensor, monkeypatch: pytest.MonkeyPatch) -> Tensor:
    """Its distances `[B]` of images in [-1, 1]; torch-fidelity's class, or for AlexNet its parts."""
    linear = torch.load(folder / f"{folder.name}.pth", weights_only=True)
    layers = layers_of(folder.name)
    weights = torch.load(folder / NAMES[folder.name], weights_only=True)
    layers.load_state_dict({name[9:]: value for name, value in weights.items() if name[0] == "f"})
    layers.requires_grad_(False)
    monkeypatch.setattr(reference, "load_state_dict_from_url", lambda *_, **__: linear)
    monkeypatch.setattr(
        reference, "torchvision_load_pretrained_vgg16", lambda: SimpleNamespace(features=layers)
    )
    x, y = (127.5 * (each + 1) for each in (x, y))
    if folder.name == "vgg":
        distances: Tensor = reference.SampleSimilarityLPIPS("lpips")(x, y)
        return distances.flatten()
    x, y = (reference.SampleSimilarityLPIPS.normalize(each) for each in (x, y))
    total = torch.zeros(len(x))
    for i, layer in enumerate(layers[:12]):  # to the last convolution's ReLU
        x, y = layer(x), layer(y)
        if isinstance(layer, nn.ReLU):
            maps = (reference.normalize_tensor(each) for each in (x, y))
            k = sum(isinstance(each, nn.ReLU) for each in layers[:i])
            difference = (next(maps) - next(maps)) ** 2
            total += (linear[f"lin{k}.model.1.weight"] * difference).sum(1).mean((1, 2))
    return total


def test_the_distance_is_the_published_one(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    network = open_features(folder)
    x, y = images(6).chunk(2)
    expected = published(folder, x, y, monkeypatch)
    assert len(expected) == 3 and expected.min() > 0.01
    for i in range(3):
        distance = perceptual_distance(network, x[i : i + 1], y[i : i + 1])
        assert float(distance) == pytest.approx(float(expected[i]), rel=1e-5)
    assert float(perceptual_distance(network, x, y)) == pytest.approx(float(expected.mean()), rel=1e-5)
    assert float(perceptual_distance(network, x, x)) == 0


def test_a_network_without_channel_weights_takes_the_mean_over_maps_and_channels_alike(folder: Path) -> None:
    network: Any = open_features(folder)
    plain: Any = SimpleNamespace(maps=network.maps, channel_weights=None)
    x, y = images(4).chunk(2)
    expected = [
        (a / a.norm(dim=1, keepdim=True) - b / b.norm(dim=1, keepdim=True)).square().sum(1).mean()
        for a, b in zip(network.maps(x), network.maps(y), strict=True)
    ]
    distance = perceptual_distance(plain, x, y)
    assert float(distance) == pytest.approx(float(torch.stack(expected).mean()), rel=1e-5)


def test_it_is_a_feature_network(folder: Path) -> None:
    network: Any = open_features(folder)
    assert network.name == {"vgg": "lpips-vgg16", "alex": "lpips-alexnet"}[folder.name]
    x = images(2).requires_grad_()
    assert network.features(x).shape == (2, WIDTHS[folder.name][-1])
    chain: Any = SimpleNamespace(features=folder)
    assert feature_width(chain, Known({}, {}, {})) == WIDTHS[folder.name][-1], "as `fewstep check` assumes"
    assert tuple(m.shape[1] for m in network.maps(x)) == WIDTHS[folder.name]
    perceptual_distance(network, x, images(4)[2:]).backward()  # type: ignore[no-untyped-call]
    assert x.grad is not None and x.grad.isfinite().all() and x.grad.abs().sum() > 0
    assert not network.training and not any(weight.requires_grad for weight in network.parameters())


def test_direct_learns_with_it(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    training = {"steps": 1, "batch_size": 2, "learning_rate": 1.0}
    config = Config.model_validate(
        {"method": "direct", "from": "teacher", "perceptual_weight": 0.5, "training": training}
    )
    net, flow = nn.Identity(), RectifiedFlow()
    student: Any = SimpleNamespace(
        net=net, denoiser=Denoiser(lambda x, time, conditions: 0.4 * x, flow, Prediction.FLOW, flow)
    )
    backbone = SimpleNamespace(decode=lambda z: 0.5 * z, decoder=nn.Identity)
    context: Any = SimpleNamespace(features=folder, backbone=backbone)
    eps, x_0 = images(4).chunk(2)
    losses = Direct(config, context, student).losses("student", TripletBatch(x_0, eps, {}), 0)
    expected = published(folder, 0.5 * 0.6 * eps, 0.5 * x_0, monkeypatch).mean()
    assert float(losses["perceptual"]) == pytest.approx(0.5 * float(expected), rel=1e-5)


def replaced(file: Path, value: Any) -> None:
    file.unlink()
    torch.save(value, file)


def with_code(folder: Path) -> None:
    replaced(folder / f"{kind(folder)}.pth", {"run": shutil.rmtree})


def text(folder: Path) -> None:
    file = folder / f"{kind(folder)}.pth"
    file.unlink()
    file.write_text("<html>not found</html>")


def kind(folder: Path) -> str:
    return "vgg" if (folder / "vgg.pth").exists() else "alex"


def linear(folder: Path, change: Callable[[dict[str, Tensor]], object]) -> None:
    file = folder / f"{kind(folder)}.pth"
    weights = torch.load(file, weights_only=True)
    change(weights)
    replaced(file, weights)


def few_layers(folder: Path) -> None:
    replaced(folder / NAMES[kind(folder)], {"features.0.weight": torch.zeros(64, 3, 3, 3)})


DAMAGE: dict[str, tuple[Callable[[Path], object], str]] = {
    "a pickle with code": (with_code, r"(vgg|alex)\.pth: damaged, or not weights"),
    "a web page": (text, r"(vgg|alex)\.pth: damaged, or not weights"),
    "no weights": (lambda f: replaced(f / f"{kind(f)}.pth", [1]), r"\.pth: not weights by name"),
    "a missing map": (lambda f: linear(f, lambda w: w.pop("lin4.model.1.weight")), "not the channel weights"),
    "another width": (
        lambda f: linear(f, lambda w: w.update({"lin0.model.1.weight": torch.ones(1, 3, 1, 1)})),
        "not the channel weights",
    ),
    "a negative weight": (
        lambda f: linear(f, lambda w: w["lin2.model.1.weight"].neg_()),
        "has negative channel weights",
    ),
    "a missing layer": (few_layers, r"(vgg16|alexnet)-.*\.pth: not torchvision's weights of (vgg16|alexnet)"),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_damaged_files_are_refused_by_name(other: Path, damage: str) -> None:
    change, message = DAMAGE[damage]
    change(other)
    with pytest.raises(UserError, match=message):
        open_features(other)


def test_a_missing_or_further_file_is_refused(other: Path) -> None:
    (other / ".gitignore").write_text("*")
    open_features(other)
    (other / "notes.txt").write_text("")
    with pytest.raises(UserError, match="found something else"):
        open_features(other)
    for file in (other / "notes.txt", other / f"{kind(other)}.pth"):
        file.unlink()
    with pytest.raises(UserError, match=r"files alex\.pth, alexnet-owt-7be5be79\.pth"):
        open_features(other)
