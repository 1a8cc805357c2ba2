"""Low-rank students: what is trained, what leaves, and that it is the same network."""

from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DiffusionPipeline, UNet2DConditionModel
from peft import LoraConfig, get_peft_model_state_dict
from pydantic import ValidationError
from safetensors.torch import load_file
from torch import nn

from fewstep.artifacts.manifest import Manifest
from fewstep.backbones.low_rank import FILE
from fewstep.backbones.model import Model, open_model, save_model
from fewstep.backbones.protocol import Backbone
from fewstep.config.training import StudentTrainingConfig
from fewstep.core.errors import UserError
from fewstep.core.paths import MODELS, TEACHER, TRIPLETS
from fewstep.export.adapter import KOHYA, export_adapter
from fewstep.methods import halve, reflow
from fewstep.students.learn import Task, learn
from fewstep.students.start import start_and_student, with_net
from fewstep.training.lora import LoraSettings, attach, detach
from tests.miniature import draw_triplets, import_miniature, prepare_images

SETTINGS = LoraSettings(rank=2, alpha=4.0)
QKV = ("to_q", "to_k", "to_v", "to_out.0")


@pytest.fixture
def backbone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Backbone:
    """A miniature Stable Diffusion as the teacher of a project in the working folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "no")
    monkeypatch.setenv("FEWSTEP_TRACKERS", "")
    return import_miniature("sd")


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


def saved(backbone: Backbone) -> nn.Module:
    """The merged network of a disturbed adapter; `models/low` has both."""
    net = deepcopy(backbone.net)
    attach(net, SETTINGS, backbone.lora_targets, 0)
    disturb(net)
    adapter = detach(net)
    student = replace(open_model(TEACHER, backbone), name="low", net=net)
    save_model(MODELS / "low", student, backbone, "reflow", {"teacher": TEACHER}, adapter)
    return net


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
    assert adapter.metadata == {
        "rank": 2,
        "alpha": 4.0,
        "targets": sorted(QKV),
        "parameters": sum(w.numel() for w in adapter.weights.values()),
    }


def test_stock_diffusers_loads_the_adapter(backbone: Backbone, tmp_path: Path) -> None:
    net = deepcopy(backbone.net)
    attach(net, SETTINGS, QKV, 0)
    disturb(net)
    expected = output(backbone, net)
    detach(net).save(tmp_path / "lora", "unet")
    stock = UNet2DConditionModel.from_pretrained(TEACHER / "unet")
    stock.load_lora_adapter(tmp_path / "lora", weight_name=FILE, prefix="unet")
    torch.testing.assert_close(output(backbone, stock), expected, atol=1e-5, rtol=1e-5)


def test_the_chain_trains_saves_and_opens_one(backbone: Backbone) -> None:
    prepare_images()
    draw_triplets(backbone)
    training = StudentTrainingConfig(steps=3, batch_size=4, learning_rate=0.05, ema=0.5)
    config = reflow.Config(training=training, lora=SETTINGS, **{"from": "teacher"})
    files = []
    for name in ("one", "one"):
        learn(Task("reflow", name, "reflow", config, [TRIPLETS / "0"], 0))
        files.append((MODELS / name / "lora" / FILE).read_bytes())
    assert files[0] == files[1]
    student = open_model(MODELS / "one", backbone)
    changed = {
        name
        for (name, new), old in zip(student.net.named_parameters(), backbone.net.parameters(), strict=True)
        if not torch.equal(new, old)
    }
    assert changed and all(any(target in name for target in QKV) for name in changed)
    metadata = Manifest.open(MODELS / "one", "model").facts
    trained = sum(w.numel() for w in load_file(MODELS / "one" / "lora" / FILE).values())
    assert metadata["lora"]["parameters"] == trained


def test_it_leaves_with_kohyas_names_and_its_own_alpha(backbone: Backbone, tmp_path: Path) -> None:
    net = saved(backbone)
    assert export_adapter(MODELS / "low", tmp_path / "out")
    weights = load_file(tmp_path / "out" / KOHYA)
    stem = "lora_unet_down_blocks_1_attentions_0_transformer_blocks_0_attn1_to_q"
    down, up, alpha = (weights[f"{stem}.{end}"] for end in ("lora_down.weight", "lora_up.weight", "alpha"))
    layer = "down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q"
    update = up @ down * (alpha / len(down))
    old, new = (dict(part.named_parameters())[f"{layer}.weight"] for part in (backbone.net, net))
    torch.testing.assert_close(old + update, new, atol=1e-5, rtol=1e-5)
    assert not export_adapter(TEACHER, tmp_path / "none")


@pytest.mark.parametrize("family", ["sdxl", "sd3", "flux", "sana"])
def test_the_stock_pipeline_loads_it(family: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    backbone = import_miniature(family)
    net = saved(backbone)
    stock = DiffusionPipeline.from_pretrained("stock")
    stock.load_lora_weights(MODELS / "low" / "lora", weight_name=FILE)
    part = backbone.net_part
    assert part in stock.get_list_adapters()
    stock.fuse_lora()
    assert_fused(getattr(stock, part), net)


@pytest.mark.parametrize("family", ["sd", "sdxl", "sd3", "flux"])
def test_it_leaves_with_names_that_are_read_elsewhere(
    family: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    backbone = import_miniature(family)
    net = saved(backbone)
    export_adapter(MODELS / "low", tmp_path / "out")
    names = {name.partition(".")[0] for name in load_file(tmp_path / "out" / KOHYA)}
    flat = {name.replace(".", "_") for name, _ in net.named_modules()}
    prefix = (
        f"lora_{backbone.net_part}_"  # ComfyUI: before every layer's name in diffusers, dots as underscores
    )
    assert names and all(name.startswith(prefix) and name.removeprefix(prefix) in flat for name in names)
    if family == "sd3":  # diffusers has no converter
        return
    stock = DiffusionPipeline.from_pretrained("stock")
    stock.load_lora_weights(tmp_path / "out", weight_name=KOHYA)
    stock.fuse_lora()
    assert_fused(getattr(stock, backbone.net_part), net)


@pytest.mark.parametrize("family", ["sd", "sdxl", "sd3", "flux"])
def test_it_stacks_with_a_second_one(family: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Such as a style's, made by stock diffusers and peft on the teacher, at a strength of its own."""
    monkeypatch.chdir(tmp_path)
    backbone = import_miniature(family)
    few_step = dict(saved(backbone).named_parameters())
    part, teacher = backbone.net_part, dict(deepcopy(backbone.net).named_parameters())
    style = getattr(DiffusionPipeline.from_pretrained("stock"), part)
    style.add_adapter(LoraConfig(r=3, lora_alpha=3, target_modules=["to_q", "to_v"], init_lora_weights=False))
    pipeline = DiffusionPipeline.from_pretrained("stock")
    pipeline.save_lora_weights("style", **{f"{part}_lora_layers": get_peft_model_state_dict(style)})
    style.fuse_lora()

    pipeline.load_lora_weights(MODELS / "low" / "lora", weight_name=FILE, adapter_name="few_step")
    pipeline.load_lora_weights("style", adapter_name="style")
    pipeline.set_adapters(["few_step", "style"], [1.0, 0.5])
    pipeline.fuse_lora(adapter_names=["few_step", "style"])
    both, styled = (dict(net.named_parameters()) for net in (getattr(pipeline, part), style))
    moved = 0
    for name, weight in teacher.items():
        layer, _, kind = name.rpartition(".")
        fused, second = (
            net[name] if name in net else net[f"{layer}.base_layer.{kind}"] for net in (both, styled)
        )
        expected = few_step[name] + 0.5 * (second - weight)
        torch.testing.assert_close(fused, expected, atol=1e-6, rtol=1e-5)
        moved += not (torch.equal(few_step[name], weight) or torch.equal(second, weight))
    assert moved, "both change the same weights somewhere"


def assert_fused(stock: nn.Module, net: nn.Module) -> None:
    """A stock network with its adapter fused is the merged one."""
    weights = dict(stock.named_parameters())
    for name, weight in net.named_parameters():
        layer, _, kind = name.rpartition(".")
        fused = weights[name] if name in weights else weights[f"{layer}.base_layer.{kind}"]
        torch.testing.assert_close(fused, weight, atol=1e-6, rtol=1e-5)


def test_teacher_and_student_share_one_copy_and_give_what_two_copies_give(
    backbone: Backbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    prepare_images()
    draw_triplets(backbone)
    training = StudentTrainingConfig(steps=3, batch_size=4, learning_rate=0.05)
    config = halve.Config(steps=2, guidance=2.0, training=training, lora=SETTINGS, **{"from": "teacher"})

    def trained() -> dict[str, torch.Tensor]:
        learn(Task("halve", "low", "halve", config, [TRIPLETS / "0"], 0))
        return load_file(MODELS / "low" / "lora" / FILE)

    def with_a_copy(start: Model, name: str, backbone: Backbone, *rest: Any) -> tuple[Model, Model]:
        alone = with_net(start, deepcopy(start.net).requires_grad_(False), backbone, start.denoiser.inputs)
        return alone, start_and_student(start, name, backbone, *rest)[1]

    one = trained()
    monkeypatch.setattr("fewstep.students.learn.start_and_student", with_a_copy)
    two = trained()
    assert any(weight.abs().max() > 0.01 for name, weight in one.items() if "lora_B" in name)
    assert all(torch.equal(weight, two[name]) for name, weight in one.items())


def test_without_its_adapter_it_is_the_start_again(backbone: Backbone) -> None:
    start = open_model(TEACHER, backbone)
    expected = output(backbone, start.net)
    config = reflow.Config(
        training=StudentTrainingConfig(steps=1, batch_size=1, learning_rate=1.0),
        lora=SETTINGS,
        **{"from": "teacher"},
    )
    alone, student = start_and_student(start, "low", backbone, config, 0)
    student.net.train()
    disturb(student.net)
    assert torch.equal(output(backbone, alone.net), expected)
    assert not alone.net.training, "each side has a mode of its own"
    assert not torch.equal(output(backbone, student.net), expected)
    assert all(("lora_" in name) == weight.requires_grad for name, weight in student.net.named_parameters())
    x = torch.randn(1, 4, 8, 8, requires_grad=True)
    text = torch.randn(1, 12, 16)
    backbone.network(alone.net)(x, torch.tensor([10.0]), {"text": text}).sum().backward()  # type: ignore[no-untyped-call]
    assert x.grad is not None and x.grad.abs().max() > 0, "a loss on the frozen network reaches its input"
    assert all(weight.grad is None for weight in student.net.parameters())
    assert sum(w.numel() for w in {*alone.net.parameters(), *student.net.parameters()}) < 1.2 * sum(
        w.numel() for w in backbone.net.parameters()
    )


def test_targets_that_match_nothing_are_named(backbone: Backbone) -> None:
    for targets in (("no_such_layer",), ("to_q", "no_such_layer")):
        with pytest.raises(UserError, match="no_such_layer: no layer"):
            attach(deepcopy(backbone.net), LoraSettings(rank=2, alpha=2, targets=targets), QKV, 0)
    with pytest.raises(ValidationError):
        LoraSettings(rank=2, alpha=2, targets=())
    net = deepcopy(backbone.net)
    attach(net, SETTINGS, (*QKV, "of_another_family"), 0)


def test_muon_trains_an_adapter(backbone: Backbone) -> None:
    """All of an adapter's weights are hidden: nothing is left for AdamW."""
    prepare_images()
    draw_triplets(backbone)
    training = {"steps": 2, "batch_size": 4, "learning_rate": 0.01, "optimizer": "muon"}
    values = {"from": "teacher", "training": training, "lora": {"rank": 2, "alpha": 2.0}}
    learn(Task("reflow@low", "low", "reflow", reflow.Config.model_validate(values), [TRIPLETS / "0"], 0))
    weights, start = open_model(MODELS / "low", backbone).net.state_dict(), backbone.net.state_dict()
    changed = {name for name, value in weights.items() if not torch.equal(value, start[name])}
    assert changed and all("attn" in name for name in changed)
