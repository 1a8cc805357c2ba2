"""Frozen weights in half precision: the bits of every result, and the bytes of the weights."""

import weakref
from collections.abc import Callable, Iterable
from copy import deepcopy
from pathlib import Path
from shutil import rmtree
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fewstep.backbones.model import open_model
from fewstep.backbones.prompts import encode_distinct
from fewstep.config.sampling import SamplingConfig
from fewstep.config.training import StudentTrainingConfig
from fewstep.core.hardware import autocast
from fewstep.core.paths import MODELS, TEACHER, TRIPLETS
from fewstep.methods import halve
from fewstep.sampling.draw import frozen_sampler
from fewstep.sampling.frozen import frozen_backbone
from fewstep.students.context import Context
from fewstep.students.learn import Task, learn, method_module
from fewstep.students.start import start_and_student, with_net
from fewstep.training import state
from fewstep.training.half import halve_frozen, rounded_by_autocast
from tests.miniature import draw_triplets, import_miniature, prepare_images
from tests.pipelines import CAPTIONS, vae
from tests.unit.test_every_method import METHODS, untrained_classifier

TRAINING = StudentTrainingConfig(steps=3, batch_size=4, learning_rate=0.02)
LORA = {"rank": 2, "alpha": 2.0}
SECTIONS: dict[str, dict[str, Any]] = {"compress": {"unet": "small"}, "halve": {"steps": 2}, "reflow": {}}
"""Methods that a section of their own describes -> their parameters."""


@pytest.fixture(autouse=True)
def half(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    monkeypatch.setenv("FEWSTEP_TRACKERS", "")


@pytest.mark.parametrize("lora", [None, {"rank": 2, "alpha": 2.0}], ids=["whole", "lora"])
@pytest.mark.parametrize("family", ["sd", "sd3", "pixart", "flux", "sana"])
def test_a_student_has_the_same_bytes_as_beside_whole_weights(
    family: str, lora: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    prepare_images()
    backbone = import_miniature(family)
    draw_triplets(backbone)
    config = halve.Config.model_validate({"from": "teacher", "steps": 2, "training": TRAINING, "lora": lora})
    frozen: list[float] = []

    def measured(networks: Iterable[nn.Module]) -> None:
        nets = [*networks]
        before = bytes_of(nets[0])
        halve_frozen(nets)
        frozen.append(bytes_of(nets[0]) / before)

    def trained(halving: Callable[[Iterable[nn.Module]], None]) -> dict[str, Tensor]:
        monkeypatch.setattr(state, "halve_frozen", halving)
        learn(Task("halve", "student", "halve", config, [TRIPLETS / "0"], 0))
        weights: dict[str, Tensor] = open_model(MODELS / "student", backbone).net.state_dict()
        rmtree(MODELS / "student")
        return weights

    weights_in_half, expected = trained(measured), trained(lambda networks: None)
    assert frozen[0] < 0.65, "the teacher's linear and convolutional weights"
    assert all(value.dtype == torch.float32 for value in weights_in_half.values())
    assert all(torch.equal(value, expected[name]) for name, value in weights_in_half.items())


def test_beside_its_adapter_a_network_is_stored_with_the_weights_of_its_start() -> None:
    """Not with the rounded ones that it was trained on."""
    prepare_images(64)
    backbone = import_miniature("sd")
    draw_triplets(backbone)
    for name, begins, lora in (("whole", "teacher", None), ("adapted", "whole", LORA)):
        values = {"method": "direct", "from": begins, "training": TRAINING, "lora": lora}
        config = method_module("direct").Config.model_validate(values)
        learn(Task("distill", name, "direct", config, [TRIPLETS / "0"], 0))
    assert (MODELS / "adapted/net").is_dir(), "its start is no adapter of the teacher"
    start, made = (open_model(MODELS / name, backbone).net.state_dict() for name in ("whole", "adapted"))
    same = [name for name, weight in made.items() if torch.equal(weight, start[name])]
    assert all(weight.dtype == torch.float32 for weight in made.values())
    convolutions = [name for name, weight in made.items() if weight.ndim == 4 and "attentions" not in name]
    assert convolutions and set(convolutions) <= set(same) and len(same) < len(made)


@pytest.mark.parametrize("method", [*METHODS, *SECTIONS])
@pytest.mark.parametrize("begins", ["teacher", "other"])
def test_the_start_model_is_halved_where_the_configuration_says_so(method: str, begins: str) -> None:
    """`fewstep check` counts a start model by its method's `evaluates_start`."""
    backbone = import_miniature("sd")
    prepare_images()
    draw_triplets(backbone)
    module = method_module(method)
    settings: dict[str, Any] = {"from": begins, "training": TRAINING}
    settings |= SECTIONS[method] if method in SECTIONS else {"method": method, **METHODS[method]}
    config = module.Config.model_validate(settings)
    teacher = open_model(TEACHER, backbone)
    model = teacher if begins == "teacher" else with_net(teacher, deepcopy(teacher.net), backbone, ())
    start, student = start_and_student(model, "student", backbone, config, 0)
    features = untrained_classifier() if config.needs_feature_maps else None
    context = Context("student", 0, start, student, backbone, [TRIPLETS / "0"], features, None)
    frozen = module.METHOD(config, context, module.student_of(config, student)).frozen
    assert any(net is start.net for net in frozen) == config.evaluates_start


@pytest.mark.parametrize("guided", [False, True], ids=["", "guidance"])
@pytest.mark.parametrize("method", METHODS)
def test_an_adapter_is_trained_on_a_rounded_base(method: str, guided: bool) -> None:
    """It is rounded unless the method evaluates the student without autocast."""
    prepare_images(64)
    backbone = import_miniature("sd")
    draw_triplets(backbone, guidance=(1.0, 3.0) if guided else 1.0)
    values = METHODS[method] | {"method": method, "from": "teacher", "training": TRAINING, "lora": LORA}
    if guided:
        ranged = {"guidance": (1.0, 3.0)} if method not in ("direct", "sdxs") else {}
        values |= {"guidance_embedding": True} | ranged
    config = method_module(method).Config.model_validate(values)
    features = untrained_classifier() if config.needs_feature_maps else None
    seen: list[torch.dtype] = []

    def note(net: nn.Module, inputs: Any) -> None:
        weights = net.named_parameters()
        seen.extend(weight.dtype for name, weight in weights if name.endswith("base_layer.weight"))

    task = Task("distill", "student", method, config, [TRIPLETS / "0"], 0, features)
    with nn.modules.module.register_module_forward_pre_hook(
        lambda net, inputs: note(net, inputs) if hasattr(net, "peft_config") else None
    ):
        learn(task)
    wanted = torch.float32 if config.full_precision else torch.bfloat16
    assert seen[-1] == wanted, "dmd2 evaluates it once before: a discriminator asks for the features' shapes"
    weights = open_model(MODELS / "student", backbone).net.state_dict().values()
    assert all(weight.dtype == torch.float32 and weight.isfinite().all() for weight in weights)


@pytest.mark.parametrize("family", ["sd", "sdxl", "sd3", "pixart", "flux", "sana"])
def test_what_is_drawn_and_encoded_has_the_same_bytes(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Teacher, autoencoder and text encoders, opened as the stages that only evaluate them do."""
    import_miniature(family)
    sampling = SamplingConfig(steps=2, guidance=3.0, negative_prompt="a small red star")

    def drawn() -> tuple[dict[str, Tensor], dict[str, set[torch.dtype]]]:
        backbone: Any = frozen_backbone(TEACHER)
        sampler = frozen_sampler(TEACHER, backbone, sampling)
        conditions, _ = encode_distinct(backbone, CAPTIONS)
        noise = torch.randn(len(CAPTIONS), *backbone.latent_shape, generator=torch.manual_seed(0))
        images = sampler.images(conditions, noise, sampling.steps)
        with torch.no_grad(), autocast():
            encoded = backbone.encode(images)
        encoders = {name: part for name, part in backbone.prompter.components.items() if "encoder" in name}
        networks = {"net": backbone.net, **encoders}
        if not backbone.vae.config.get("force_upcast"):
            networks["vae"] = backbone.vae
        dtypes = {
            name: {weight.dtype for weight in rounded_by_autocast(net)}
            for name, net in networks.items()
            if isinstance(net, nn.Module)
        }
        return conditions | {"images": images, "encoded": encoded}, dtypes

    rounded, dtypes = drawn()
    assert len(dtypes) > 1 and all(kinds == {torch.bfloat16} for kinds in dtypes.values()), dtypes
    monkeypatch.setenv("FEWSTEP_HALF_FROZEN", "0")
    exact, dtypes = drawn()
    assert all(kinds == {torch.float32} for kinds in dtypes.values()), dtypes
    assert rounded.keys() == exact.keys()
    assert {name for name, value in exact.items() if not torch.equal(value, rounded[name])} == set()


def test_a_training_does_not_keep_the_text_encoders() -> None:
    backbone: Any = import_miniature("sd")
    start = open_model(TEACHER, backbone)
    context = Context("student", 0, start, start, backbone, [], None, None)
    encoder = weakref.ref(backbone.prompter.text_encoder)
    first = context.unconditional()
    assert encoder() is None
    assert torch.equal(context.unconditional()["text"], first["text"])


def test_nothing_is_rounded_where_results_would_change(monkeypatch: pytest.MonkeyPatch) -> None:
    """Trained weights, other layers, autoencoders that ask for float32; machines without autocast."""
    net = nn.Sequential(nn.Linear(2, 2), nn.LayerNorm(2), nn.Conv1d(2, 2, 1)).requires_grad_(False)
    net[0].weight.requires_grad_(True)
    upcast = vae(force_upcast=True).requires_grad_(False)
    halve_frozen([net, upcast])
    half = {name for name, weight in net.named_parameters() if weight.dtype == torch.bfloat16}
    assert half == {"0.bias", "2.weight", "2.bias"}
    assert {weight.dtype for weight in upcast.parameters()} == {torch.float32}
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "no")
    plain = nn.Linear(2, 2).requires_grad_(False)
    halve_frozen([plain])
    assert plain.weight.dtype == torch.float32


def bytes_of(net: nn.Module) -> int:
    """Of its weights."""
    return sum(weight.nbytes for weight in net.parameters())
