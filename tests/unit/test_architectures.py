"""Models of other architectures than their teacher's, and models of several networks."""

import sys
import textwrap
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import AutoencoderTiny, DiffusionPipeline
from torch import Tensor, nn

from fewstep.artifacts.manifest import Manifest
from fewstep.backbones.architecture import open_network, save_network
from fewstep.backbones.custom import CustomModel
from fewstep.backbones.model import Model, open_model, save_model
from fewstep.backbones.protocol import Backbone
from fewstep.config.sampling import SamplingConfig
from fewstep.config.training import StudentTrainingConfig
from fewstep.core.errors import UserError
from fewstep.core.files import read_json, write_json
from fewstep.core.paths import MODELS, TEACHER, TRIPLETS
from fewstep.diffusion.denoiser import Prediction
from fewstep.diffusion.sampling import STUDENTS
from fewstep.diffusion.schedules import Cosine, RectifiedFlow
from fewstep.export.pipeline import export
from fewstep.methods import direct, halve
from fewstep.sampling.draw import DECODER, Sampler
from fewstep.students.learn import Task, learn
from tests.miniature import draw_triplets, import_miniature, prepare_images
from tests.pipelines import CAPTIONS, clip, unet

TRAINING = StudentTrainingConfig(steps=2, batch_size=4, learning_rate=0.02)


@pytest.fixture(autouse=True)
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "no")
    monkeypatch.setenv("FEWSTEP_TRACKERS", "")


def tiny_decoder() -> AutoencoderTiny:
    """As SDXS and TAESD have it; 8 pixels a latent."""
    torch.manual_seed(5)
    wide = (8, 8, 8, 8)
    net = AutoencoderTiny(
        encoder_block_out_channels=wide, decoder_block_out_channels=wide, num_decoder_blocks=(1, 1, 1, 1)
    )
    return net.eval()


def small_model(backbone: Backbone) -> Model:
    """A U-Net of its own, a third as wide, and a decoder; in the models' folder."""
    torch.manual_seed(4)
    start = open_model(TEACHER, backbone)
    net = unet(16, mid_block_type=None).eval()
    denoiser = replace(start.denoiser, network=backbone.network(net))
    model = Model("small", net, denoiser.on(RectifiedFlow()), None, STUDENTS, {DECODER: tiny_decoder()})
    save_model(MODELS / "small", model, backbone, "reflow", {"teacher": TEACHER})
    return model


def drawn(model: Model, backbone: Backbone, steps: int) -> tuple[Tensor, Tensor]:
    """Latents, and their images."""
    noise = torch.randn(2, *backbone.latent_shape, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        conditions = backbone.encode_prompts(CAPTIONS)
    sampler = Sampler(model, backbone, SamplingConfig())
    latents = sampler.latents(conditions, noise, steps)
    return latents, sampler.decode(latents)


def test_a_model_takes_its_sizes_from_itself(tmp_path: Path) -> None:
    prepare_images()
    backbone = import_miniature("sd")
    draw_triplets(backbone)
    made = small_model(backbone)
    opened = open_model(MODELS / "small", backbone)
    metadata = Manifest.open(MODELS / "small", "model").facts
    assert metadata["parameters"] == opened.parameters == made.parameters
    assert opened.parameters < open_model(TEACHER, backbone).parameters and metadata["parts"] == ["decoder"]
    for ours, again in zip(drawn(made, backbone, 2), drawn(opened, backbone, 2), strict=True):
        assert torch.equal(ours, again)
    latents, images = drawn(opened, backbone, 2)
    with torch.no_grad():
        torch.testing.assert_close(images, tiny_decoder().decode(latents).sample)
        assert not torch.allclose(images, backbone.decode(latents), atol=0.1), "not the teacher's decoder"


@pytest.mark.parametrize("lora", [None, {"rank": 2, "alpha": 2.0}], ids=["whole", "lora"])
def test_the_chain_goes_on_from_a_model_of_another_architecture(
    lora: dict[str, float] | None, tmp_path: Path
) -> None:
    prepare_images()
    backbone = import_miniature("sd")
    draw_triplets(backbone)
    made = small_model(backbone)
    settings = {"training": TRAINING, "lora": lora}
    rounds = halve.Config.model_validate({"from": "small", "steps": 2, **settings})
    learn(Task("halve", "halve-2", "halve", rounds, [TRIPLETS / "0"], 0))
    last = direct.Config.model_validate({"from": "halve-2", "method": "direct", **settings})
    learn(Task("distill", "one", "direct", last, [TRIPLETS / "0"], 0))
    one = open_model(MODELS / "one", backbone)
    assert one.parameters == made.parameters and set(one.parts) == {DECODER}
    weights = dict(made.net.named_parameters())
    changed = [name for name, weight in one.net.named_parameters() if not torch.equal(weight, weights[name])]
    assert changed and (lora is None or all("to_" in name for name in changed))

    export(tmp_path / "out", one, MODELS / "one", TEACHER, backbone)
    stock: Any = DiffusionPipeline.from_pretrained(tmp_path / "out")
    assert isinstance(stock.vae, AutoencoderTiny)
    stock.set_progress_bar_config(disable=True)
    noise = torch.randn(2, *backbone.latent_shape, generator=torch.Generator().manual_seed(1))
    call = read_json(tmp_path / "out/fewstep.json")["call"]
    images = stock(CAPTIONS, latents=noise, output_type="pt", **call).images
    expected = (drawn(one, backbone, 1)[1].clamp(-1, 1) + 1) / 2
    torch.testing.assert_close(images, expected, atol=1e-4, rtol=0)


OWN = """
    from torch import nn

    class Net(nn.Module):
        def __init__(self, width, plain=False):
            super().__init__()
            if not plain:
                self.config = {"width": width}
            self.layers = nn.Sequential(nn.Conv2d(2, width, 1), nn.Conv2d(width, 2, 1))

        def forward(self, x, time):
            return self.layers(x)
    """


@pytest.fixture
def own_net(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A class of a module of the user's."""
    (tmp_path / "lab_nets.py").write_text(textwrap.dedent(OWN))
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    yield import_module("lab_nets").Net
    del sys.modules["lab_nets"]


def test_an_own_network_with_a_config_has_a_width_of_its_own(own_net: Any, tmp_path: Path) -> None:
    family = CustomModel(own_net(8), (2, 4, 4), Cosine(), Prediction.V)
    narrow = own_net(3)
    family.save_net(narrow, tmp_path / "narrow")
    reopened = family.load_net(tmp_path / "narrow")
    for ours, again in zip(narrow.parameters(), reopened.parameters(), strict=True):
        assert torch.equal(ours, again)
    plain = CustomModel(own_net(8, plain=True), (2, 4, 4), Cosine(), Prediction.V)
    plain.save_net(own_net(8, plain=True), tmp_path / "same")
    assert sum(p.numel() for p in plain.load_net(tmp_path / "same").parameters()) == 42
    plain.save_net(own_net(3, plain=True), tmp_path / "other")
    with pytest.raises(
        UserError, match=r"other/weights\.safetensors: does not fit the model of this teacher"
    ):
        plain.load_net(tmp_path / "other")


@pytest.mark.parametrize(
    "change",
    [{"class": "lab_nets:Gone"}, {"class": "gone:Net"}, {"config": {"wide": 3}}, {"config": None}],
    ids=["class", "module", "argument", "none"],
)
def test_a_description_that_makes_no_network_is_named(own_net: Any, change: Any, tmp_path: Path) -> None:
    save_network(own_net(3), tmp_path / "net")
    file = tmp_path / "net/architecture.json"
    write_json(file, read_json(file) | change)
    with pytest.raises(UserError, match=r"net/architecture\.json: no network can be made from it"):
        open_network(tmp_path / "net")


@pytest.mark.parametrize(
    "make", [tiny_decoder, lambda: unet(16), lambda: clip(8)], ids=["vae", "unet", "clip"]
)
def test_any_network_is_opened_by_the_config_in_its_folder(make: Any, tmp_path: Path) -> None:
    net: nn.Module = make()
    save_network(net, tmp_path / "net")
    opened = open_network(tmp_path / "net")
    assert type(opened) is type(net) and not opened.training
    weights = opened.state_dict()
    assert all(torch.equal(value, weights[name]) for name, value in net.state_dict().items())


def test_a_folder_that_names_no_network_class_is_refused(tmp_path: Path) -> None:
    save_network(nn.Linear(2, 2), tmp_path / "net")
    with pytest.raises(UserError, match=r"net: neither config\.json nor architecture\.json says"):
        open_network(tmp_path / "net")
