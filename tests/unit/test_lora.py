"""Low-rank students: what is trained, what leaves, and that it is the same network."""

from collections.abc import Iterator
from copy import deepcopy
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from accelerate.state import AcceleratorState
from diffusers import UNet2DConditionModel
from safetensors.torch import load_file
from torch import nn

from fewstep.artifacts.folder import whole_folder
from fewstep.artifacts.manifest import Manifest
from fewstep.backbones.base import Backbone, open_backbone, open_model, save_model
from fewstep.backbones.importing import import_teacher
from fewstep.config.data import DataConfig
from fewstep.config.sampling import SamplingConfig
from fewstep.config.teacher import ImportTeacherConfig
from fewstep.config.training import TrainingConfig
from fewstep.errors import UserError
from fewstep.export.adapter import KOHYA, export_adapter
from fewstep.layout import DATA, MODELS, TEACHER, TRIPLETS
from fewstep.objectives import reflow
from fewstep.objectives.learn import learn
from fewstep.objectives.lora import FILE, LoraSettings, attach, detach
from fewstep.preparation.prepare import prepare
from fewstep.sampling.draw import Sampler
from fewstep.sampling.triplets import write_triplets
from tests.pipelines import make

SETTINGS = LoraSettings(rank=2, alpha=4.0)
QKV = ("to_q", "to_k", "to_v", "to_out.0")


@pytest.fixture
def backbone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Backbone]:
    """A miniature Stable Diffusion as the teacher of a project in the working folder."""
    # accelerate keeps one precision per process; the tests before and after this may use another.
    AcceleratorState._reset_state()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "no")
    monkeypatch.setenv("FEWSTEP_TRACKERS", "")
    make("sd", tmp_path / "stock")
    with whole_folder(TEACHER) as staging:
        facts = import_teacher(str(tmp_path / "stock"), "sd", ImportTeacherConfig(), staging)
        Manifest.seal(staging, "teacher", facts, {})
    yield open_backbone(TEACHER)
    AcceleratorState._reset_state()


def output(backbone: Backbone, net: nn.Module) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, 4, 8, 8, generator=generator)
    text = torch.randn(2, 12, 16, generator=generator)
    with torch.no_grad():
        return backbone.network(net.eval())(x, torch.tensor([999.0, 10.0]), {"text": text})


def disturb(net: nn.Module) -> None:
    """As if it had been trained."""
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for weight in net.parameters():
            if weight.requires_grad:
                weight.add_(0.3 * torch.randn(weight.shape, generator=generator))


def test_a_new_adapter_changes_nothing_and_alone_is_trained(backbone: Backbone) -> None:
    net = deepcopy(backbone.net)
    attach(net, SETTINGS, QKV, 0)
    assert torch.equal(output(backbone, net), output(backbone, backbone.net))
    assert all(("lora_" in name) == weight.requires_grad for name, weight in net.named_parameters())


def test_merged_it_is_the_network_with_the_adapter_and_has_its_shape(backbone: Backbone) -> None:
    net = deepcopy(backbone.net)
    attach(net, SETTINGS, QKV, 0)
    disturb(net)
    before = output(backbone, net)
    adapter = detach(net)
    torch.testing.assert_close(output(backbone, net), before, atol=1e-5, rtol=1e-5)
    assert (before - output(backbone, backbone.net)).abs().max() > 1e-2
    assert net.state_dict().keys() == backbone.net.state_dict().keys()
    assert adapter.parameters == sum(w.numel() for w in adapter.weights.values()) > 0


def test_stock_diffusers_loads_the_adapter(backbone: Backbone, tmp_path: Path) -> None:
    net = deepcopy(backbone.net)
    attach(net, SETTINGS, QKV, 0)
    disturb(net)
    expected = output(backbone, net)
    detach(net).save(tmp_path / "lora")
    stock = UNet2DConditionModel.from_pretrained(TEACHER / "unet")
    stock.load_lora_adapter(tmp_path / "lora", weight_name=FILE, prefix="unet")
    torch.testing.assert_close(output(backbone, stock), expected, atol=1e-5, rtol=1e-5)


def test_the_chain_trains_saves_and_opens_one(backbone: Backbone, tmp_path: Path) -> None:
    prepare(DataConfig(source="shapes", count=24, resolution=64, heldout=0.5), 0, DATA)
    teacher = Sampler(open_model(TEACHER, backbone), backbone, SamplingConfig(steps=2, guidance=1.0))
    write_triplets(TRIPLETS / "0", teacher, DATA, 0, 8, 0, tmp_path / "work", {"teacher": TEACHER})
    training = TrainingConfig(steps=3, batch_size=4, learning_rate=0.05, ema=0.5)
    config = reflow.Config(training=training, lora=SETTINGS, **{"from": "teacher"})
    files = []
    for name in ("one", "one"):
        learn("reflow", name, "reflow", config, [0], 0)
        files.append((MODELS / name / "lora" / FILE).read_bytes())
    assert files[0] == files[1]
    student = open_model(MODELS / "one", backbone)
    changed = {
        name
        for (name, new), old in zip(student.net.named_parameters(), backbone.net.parameters(), strict=True)
        if not torch.equal(new, old)
    }
    assert changed and all(any(target in name for target in QKV) for name in changed)
    facts = Manifest.open(MODELS / "one", "model").facts
    trained = sum(w.numel() for w in load_file(MODELS / "one" / "lora" / FILE).values())
    assert facts["trained_parameters"] == trained


def test_it_leaves_with_kohyas_names_and_its_own_alpha(backbone: Backbone, tmp_path: Path) -> None:
    net = deepcopy(backbone.net)
    attach(net, SETTINGS, QKV, 0)
    disturb(net)
    adapter = detach(net)
    student = replace(open_model(TEACHER, backbone), name="low", net=net)
    save_model(MODELS / "low", student, backbone, "reflow", {"teacher": TEACHER}, adapter)
    assert export_adapter(MODELS / "low", tmp_path / "out")
    found = load_file(tmp_path / "out" / KOHYA)
    stem = "lora_unet_down_blocks_1_attentions_0_transformer_blocks_0_attn1_to_q"
    down, up, alpha = (found[f"{stem}.{end}"] for end in ("lora_down.weight", "lora_up.weight", "alpha"))
    layer = "down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q"
    update = up @ down * (alpha / len(down))
    old, new = (dict(part.named_parameters())[f"{layer}.weight"] for part in (backbone.net, net))
    torch.testing.assert_close(old + update, new, atol=1e-5, rtol=1e-5)
    assert not export_adapter(TEACHER, tmp_path / "none")


def test_targets_that_match_nothing_are_named(backbone: Backbone) -> None:
    with pytest.raises(UserError, match="no_such_layer"):
        attach(deepcopy(backbone.net), LoraSettings(rank=2, alpha=2, targets=("no_such_layer",)), QKV, 0)
