"""`compress`: trained on every family by the real loop; what is written is the student and nothing else."""

from pathlib import Path
from shutil import rmtree
from typing import Any

import diffusers
import pytest
import torch
from torch import Tensor

from fewstep.artifacts.manifest import sha256
from fewstep.backbones.model import Model, open_model
from fewstep.backbones.protocol import Backbone
from fewstep.backbones.registry import open_backbone
from fewstep.config.sampling import SamplingConfig
from fewstep.core.errors import UserError
from fewstep.core.files import read_json
from fewstep.core.hardware import attention
from fewstep.core.paths import MODELS, TEACHER, TRIPLETS
from fewstep.diffusion.sampling import Guidance
from fewstep.methods import compress, direct, flow_map, halve
from fewstep.sampling.draw import Sampler
from fewstep.students.context import Context
from fewstep.students.learn import Task, learn
from fewstep.students.start import start_and_student
from fewstep.training.method import Rows
from fewstep.training.state import State
from tests import pipelines
from tests.compression import teacher_from, unet_of
from tests.interrupting import interrupted_and_resumed
from tests.miniature import draw_triplets, import_miniature, prepare_images
from tests.pipelines import CAPTIONS, MAKERS

TRAINING = {"steps": 3, "batch_size": 4, "learning_rate": 0.01, "ema": 0.5}
CUTS: dict[str, dict[str, Any]] = {
    "sd": {"unet": "small"},
    "sdxl": {"unet": "small"},
    "pixart": {"blocks": {"transformer_blocks": [1]}},
    "pixart_sigma": {"blocks": {"transformer_blocks": [0]}},
    "sd3": {"blocks": {"transformer_blocks": [1]}},
    "flux": {"blocks": {"transformer_blocks": 1}},
    "sana": {"blocks": {"transformer_blocks": [0]}},
}
"""Family -> what is left of its miniature."""


@pytest.fixture(autouse=True)
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "no")
    monkeypatch.setenv("FEWSTEP_TRACKERS", "")
    monkeypatch.setenv("FEWSTEP_SAVE_EVERY_SECONDS", "0")


@pytest.fixture
def deep(monkeypatch: pytest.MonkeyPatch) -> Backbone:
    """A teacher of three levels with two layers each, and its triplets."""
    monkeypatch.setattr(pipelines, "unet", unet_of)
    prepare_images()
    folder = Path("made")
    pipelines.make("sd", folder)
    return teacher_from(folder)


def config(**values: Any) -> compress.Config:
    return compress.Config.model_validate({"from": "teacher", "training": TRAINING} | values)


def compressed(backbone: Backbone, name: str = "small", **values: Any) -> Model:
    """The trained model."""
    learn(Task(f"compress@{name}", name, "compress", config(**values), [TRIPLETS / "0"], 0))
    return open_model(MODELS / name, backbone)


def method_of(backbone: Backbone, chosen: compress.Config) -> Any:
    """The training, before its first step."""
    start, student = start_and_student(open_model(TEACHER, backbone), "small", backbone, chosen, 0)
    context = Context("small", 0, start, student, backbone, [Path("artifacts/triplets/0")], None, None)
    return compress.METHOD(chosen, context, compress.student_of(chosen, student))


def hashes(folder: Path) -> dict[str, str]:
    return {str(file): sha256(file) for file in sorted(folder.rglob("*")) if file.is_file()}


@pytest.mark.parametrize("family", sorted(CUTS))
def test_a_smaller_model_is_trained_and_resumed_to_the_same_bytes(family: str) -> None:
    prepare_images()
    backbone = import_miniature(family)
    draw_triplets(backbone)
    cut = CUTS[family]
    before = hashes(TEACHER)
    expected: Any = config(**cut).network(backbone.net).state_dict()
    made = compressed(backbone, **cut)
    whole = hashes(MODELS / "small" / "net")
    assert hashes(TEACHER) == before  # the start model is not written over
    weights = made.net.state_dict()
    assert {name: value.shape for name, value in weights.items()} == {
        name: value.shape for name, value in expected.items()
    }
    assert any(not torch.equal(value, expected[name]) for name, value in weights.items())
    assert all(value.isfinite().all() for value in weights.values())
    assert read_json(MODELS / "small" / "manifest.json")["facts"]["parameters"] == made.parameters
    if family != "flux":  # whose miniature has one block of each kind
        assert made.parameters < sum(weight.numel() for weight in backbone.net.parameters())

    # Stock diffusers loads it at its own size.
    stock = getattr(diffusers, backbone.net_class).from_pretrained(MODELS / "small" / "net")  # type: ignore[attr-defined]
    assert all(torch.equal(value, weights[name]) for name, value in stock.state_dict().items())
    rmtree(MODELS / "small")

    interrupted_and_resumed(compress.METHOD, lambda: compressed(backbone, **cut))
    assert hashes(MODELS / "small" / "net") == whole


def test_every_family_of_the_tests_has_a_rule_or_an_error() -> None:
    assert MAKERS.keys() - CUTS.keys() == {"pixel"}
    prepare_images(16)
    draw_triplets(import_miniature("pixel"))
    with pytest.raises(UserError, match="unet: no rule to make a UNet2DModel smaller"):
        compressed(open_backbone(TEACHER), unet="base")


def test_the_size_full_draws_what_its_start_draws(deep: Backbone) -> None:
    noise = torch.randn(2, *deep.latent_shape, generator=torch.Generator().manual_seed(0))
    conditions = deep.encode_prompts(CAPTIONS)

    def drawn(model: Model) -> Tensor:
        return Sampler(model, deep, SamplingConfig(steps=3, guidance=2.0)).latents(conditions, noise, 3)

    start, student = start_and_student(open_model(TEACHER, deep), "small", deep, config(unet="full"), 0)
    assert student.net is not start.net and student.sampling == start.sampling
    assert torch.equal(drawn(start), drawn(student))
    smaller = start_and_student(start, "small", deep, config(unet="base"), 0)[1]
    assert not torch.equal(drawn(start), drawn(smaller))


@pytest.mark.parametrize(("size", "count"), [("base", 7), ("small", 6), ("tiny", 4), ("sdxs", 4)])
def test_a_size_is_written_with_its_own_configuration(size: str, count: int, deep: Backbone) -> None:
    made = compressed(deep, unet=size)
    described = read_json(MODELS / "small" / "net" / "config.json")
    assert described["layers_per_block"] == 1
    assert (described["mid_block_type"] is None) == (size != "base")
    assert len(described["block_out_channels"]) == (2 if size in ("tiny", "sdxs") else 3)
    assert ("DownBlock2D" in described["down_block_types"]) == (size == "sdxs")
    stock = diffusers.UNet2DConditionModel.from_pretrained(MODELS / "small" / "net")
    assert sum(weight.numel() for weight in stock.parameters()) == made.parameters
    assert len([*stock.down_blocks, *stock.up_blocks]) + (stock.mid_block is not None) == count
    assert made.sampling.guidance is Guidance.SCALE  # as its start's


def test_the_average_has_the_students_size(deep: Backbone) -> None:
    method = method_of(deep, config(unet="tiny"))
    state = State(method, Path("work"))
    shapes = {name: weight.shape for name, weight in method.student.net.named_parameters()}
    tensors, prefix = state.tensors(), "student/average/ema/weights/net/"
    averages = {
        name.removeprefix(prefix): value.shape for name, value in tensors.items() if name.startswith(prefix)
    }
    assert averages == shapes
    start = {weight.data_ptr() for weight in method.start.net.parameters()}
    assert not start & {value.data_ptr() for value in tensors.values()}


@pytest.mark.parametrize("size", ["base", "small", "tiny", "sdxs"])
def test_every_feature_has_its_gradient_under_gradient_checkpointing(
    size: str, deep: Backbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    def gradients() -> dict[str, list[Tensor]]:
        method = method_of(deep, config(unet=size))
        State(method, Path("work"))
        with torch.no_grad():
            for (
                weight
            ) in method.student.net.parameters():  # away from the start, where a feature may be equal
                weight += 0.1 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(1))
        by_term, net = {}, method.student.net
        for name in method.losses("student", method.batch(Rows(0, range(2))), 0):
            net.zero_grad()
            with attention():
                terms = method.losses("student", method.batch(Rows(0, range(2))), 0)
                terms[name].backward()
            by_term[name] = [weight.grad for weight in net.parameters() if weight.grad is not None]
            assert any(gradient.abs().max() > 0 for gradient in by_term[name]), name
        assert len(by_term) == 2 + len(method.blocks)
        assert net.is_gradient_checkpointing == (len(rounds) == 1)
        rounds.append(size)
        return by_term

    rounds: list[str] = []
    expected = gradients()
    monkeypatch.setenv("FEWSTEP_CHECKPOINT_ACTIVATIONS", "1")
    for name, recomputed in gradients().items():
        for mine, theirs in zip(recomputed, expected[name], strict=True):
            torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-6)


def test_the_loss_falls(deep: Backbone) -> None:
    """Without the task term a student of size full stays where it starts: all other errors are 0."""

    def loss(model: Model) -> float:
        method = method_of(deep, config(unet="base", unconditional=0.0))
        method.student.net.load_state_dict(model.net.state_dict())
        with torch.no_grad():
            terms = method.losses("student", method.batch(Rows(0, range(8))), 0)
        return float(sum(terms.values()))

    before = loss(start_and_student(open_model(TEACHER, deep), "small", deep, config(unet="base"), 0)[1])
    training = {"steps": 20, "batch_size": 8, "learning_rate": 0.004}
    assert loss(compressed(deep, unet="base", training=training)) < 0.7 * before
    full = compressed(deep, "same", unet="full", task_weight=0, training=training | {"steps": 2})
    assert all(
        torch.equal(value, deep.net.state_dict()[name]) for name, value in full.net.state_dict().items()
    )


def test_a_one_step_model_is_compressed_on_its_pairs(deep: Backbone) -> None:
    values = {"from": "teacher", "method": "direct", "training": TRAINING}
    learn(Task("distill", "one_step", "direct", direct.Config.model_validate(values), [TRIPLETS / "0"], 0))
    with pytest.raises(UserError, match="task_weight: fits a teacher with noise: fresh"):
        compressed(deep, unet="base", **{"from": "one_step"})
    made = compressed(deep, unet="base", noise="pairs", **{"from": "one_step"})
    start = open_model(MODELS / "one_step", deep)
    assert (made.steps, made.sampling, made.denoiser.path) == (1, start.sampling, start.denoiser.path)
    assert made.sampling.guidance is Guidance.BUILT_IN
    chosen = config(unet="base", noise="pairs", **{"from": "one_step"})
    student = start_and_student(start, "small", deep, chosen, 0)[1]
    context = Context("small", 0, start, student, deep, [Path("artifacts/triplets/0")], None, None)
    batch = compress.METHOD(chosen, context, student).batch(Rows(0, range(4)))
    assert (batch.t == 1).all() and (batch.end == 0).all()
    torch.testing.assert_close(batch.x_t.float(), context.triplet_batch(range(4)).eps)


@pytest.mark.parametrize("family", ["sd", "sana"])
def test_a_start_keeps_its_inputs(family: str) -> None:
    prepare_images()
    backbone = import_miniature(family)
    draw_triplets(backbone, guidance=(1.0, 3.0))
    values = {"from": "teacher", "training": TRAINING, "steps": 2, "guidance_embedding": True}
    learn(Task("halve", "halve-2", "halve", halve.Config.model_validate(values), [TRIPLETS / "0"], 0))
    mapped = {"from": "halve-2", "method": "flow_map", "training": TRAINING}
    learn(Task("distill", "map", "flow_map", flow_map.Config.model_validate(mapped), [TRIPLETS / "0"], 0))
    with pytest.raises(UserError, match="task_weight: fits a teacher with noise: fresh"):
        compressed(backbone, noise="pairs", **CUTS[family], **{"from": "map"})
    noise = torch.randn(2, *backbone.latent_shape, generator=torch.Generator().manual_seed(0))
    t, text = torch.ones(2), backbone.encode_prompts(CAPTIONS)
    for start, inputs in (("halve-2", ("guidance",)), ("map", ("guidance", "end_time"))):
        made = compressed(backbone, start + "-small", task_weight=0, **CUTS[family], **{"from": start})
        assert made.denoiser.inputs == inputs and made.takes_guidance
        for name, other in zip(inputs, (3.0, 0.5), strict=False):
            usual = text | {"guidance": torch.ones(2), "end_time": torch.zeros(2)}
            changed = usual | {name: torch.full((2,), other)}
            assert not torch.equal(made.denoiser(noise, t, usual).x_0, made.denoiser(noise, t, changed).x_0)


def test_an_adapter_is_trained_on_the_result(deep: Backbone) -> None:
    small = compressed(deep, unet="tiny", training=TRAINING | {"evaluate_every": 2})
    curve = read_json(MODELS / "small" / "evaluations.json")["curve"]
    assert [measured["step"] for measured in curve][-1] == 3
    values = {
        "from": "small",
        "method": "direct",
        "training": TRAINING,
        "lora": {"rank": 2, "alpha": 2.0},
    }
    learn(Task("distill", "adapted", "direct", direct.Config.model_validate(values), [TRIPLETS / "0"], 0))
    adapted = open_model(MODELS / "adapted", deep)
    assert adapted.parameters == small.parameters
    weights = small.net.state_dict()
    trained = {"to_q", "to_k", "to_v", "to_out"}
    changed = {
        name for name, value in adapted.net.state_dict().items() if not torch.equal(value, weights[name])
    }
    assert changed and all(trained & {*name.split(".")} for name in changed)
