"""Every method of `students:` on every family: whole and low-rank; the same bytes after an interruption."""

from pathlib import Path
from shutil import rmtree
from typing import Any

import pytest
import torch
from diffusers.models.resnet import ResnetBlock2D
from torch import Tensor

from fewstep.backbones.model import open_model
from fewstep.core.paths import JUDGE, MODELS, TRIPLETS
from fewstep.features.attribute_classifier import AttributeClassifier
from fewstep.sources.shapes import LABELS
from fewstep.students.learn import Task, learn, method_module
from tests.interrupting import interrupted_and_resumed
from tests.miniature import draw_triplets, import_miniature, prepare_images
from tests.pipelines import MAKERS

FAKE = {"learning_rate": 0.01}
METHODS: dict[str, dict[str, Any]] = {
    "direct": {},
    "dmd2": {
        "fake": FAKE,
        "steps": 2,
        "student_every": 2,
        "guidance": 2.0,
        "gan": {"divergence": "jensen_shannon"},
        "decoupled": True,
        "diversity": {"steps": 1, "of": 3},
        "ida": 0.1,
    },
    "flow_map": {"warmup_tangent": 2, "guidance": 2.0},
    "flash": {"grid": 4, "distance": "l2", "discriminator": {"learning_rate": 0.01}},
    "lcm": {"grid": 4, "guidance": 2.0},
    "piecewise": {"windows": 2, "solver_steps": 2, "guidance": 2.0},
    "sid": {"fake": FAKE, "guidance": [1.0, 3.0], "first_time": 0.75},
    "sdxs": {
        "fake": FAKE,
        "warmup_steps": 1,
        "guidance": 2.0,
        "gan": {"from_step": 1, "optimizer": FAKE},
    },
    "tdm": {"fake": FAKE, "steps": 2, "guidance": 2.0},
}
"""Method -> its parameters beside the training's."""
FILES = Path(method_module("direct").__file__).parent
TRAINING = {"steps": 3, "batch_size": 4, "learning_rate": 0.01, "ema": 0.5}
LORA = {"rank": 2, "alpha": 2.0}


def config(method: str, lora: dict[str, float] | None = None) -> Any:
    """The method's parameters."""
    values = {"method": method, "from": "teacher", "training": TRAINING, "lora": lora} | METHODS[method]
    return method_module(method).Config.model_validate(values)


TRAINED = [
    (method, family, lora)
    for i, method in enumerate(METHODS)
    for j, family in enumerate(sorted(MAKERS))
    for whole, lora in enumerate((None, LORA))
    if family == "sd" or (i + j + whole) % 2 == 0 or config(method).inputs
]
"""Both kinds on `sd`, and of a method that adds an input. Otherwise the families alternate: each method has
both kinds, each family has both."""


@pytest.fixture(autouse=True)
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "no")
    monkeypatch.setenv("FEWSTEP_TRACKERS", "")
    monkeypatch.setenv("FEWSTEP_SAVE_EVERY_SECONDS", "0")


def untrained_classifier() -> Path:
    """The chain's classifier with random weights."""
    torch.manual_seed(0)
    AttributeClassifier(LABELS, widths=(8, 16), feature_dim=8).save(JUDGE, 64, {})
    return JUDGE


def test_no_method_is_left_out() -> None:
    made_by_a_section_of_its_own = {"compress", "decoder", "reflow", "halve", "__init__"}
    assert {file.stem for file in FILES.glob("*.py")} - made_by_a_section_of_its_own == set(METHODS)


@pytest.mark.parametrize(
    ("method", "family", "lora"),
    TRAINED,
    ids=[f"{method}-{family}-{'lora' if lora else 'whole'}" for method, family, lora in TRAINED],
)
def test_a_student_is_trained(method: str, family: str, lora: dict[str, float] | None) -> None:
    """On `sd` also interrupted and resumed, to the same bytes."""
    prepare_images(16 if family == "pixel" else 64)
    backbone = import_miniature(family)
    draw_triplets(backbone)
    module = method_module(method)
    chosen = config(method, lora)
    features = untrained_classifier() if chosen.needs_feature_maps else None
    task = Task("distill", "student", method, chosen, [TRIPLETS / "0"], 0, features)

    def weights() -> dict[str, Tensor]:
        learn(task)
        state: dict[str, Tensor] = open_model(MODELS / "student", backbone).net.state_dict()
        rmtree(MODELS / "student")
        return state

    whole = weights()
    start = backbone.net.state_dict()
    assert any(not torch.equal(value, whole[name]) for name, value in start.items())
    assert all(value.isfinite().all() for value in whole.values())

    if family != "sd":  # what is saved and read does not depend on the family
        return
    resumed = interrupted_and_resumed(module.METHOD, weights)
    assert all(torch.equal(value, whole[name]) for name, value in resumed.items())


@pytest.mark.parametrize("lora", [None, LORA], ids=["whole", "lora"])
@pytest.mark.parametrize("method", ["flash", "sid"])
def test_activations_of_frozen_networks_are_recomputed_too(
    method: str, lora: dict[str, float] | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Gradients pass through the teacher's layers; the same student is learned."""
    prepare_images()
    backbone = import_miniature("sd")
    draw_triplets(backbone)
    features = untrained_classifier()
    calls: list[int] = []
    forward = ResnetBlock2D.forward

    def counted(layer: ResnetBlock2D, *args: Any, **more: Any) -> Any:
        if calls and not layer.training and torch.is_grad_enabled():
            calls[-1] += 1
        return forward(layer, *args, **more)

    def learned() -> dict[str, Tensor]:
        calls.append(0)
        learn(Task("distill", "student", method, config(method, lora), [TRIPLETS / "0"], 0, features))
        state: dict[str, Tensor] = open_model(MODELS / "student", backbone).net.state_dict()
        rmtree(MODELS / "student")
        return state

    monkeypatch.setattr(ResnetBlock2D, "forward", counted)
    expected = learned()
    monkeypatch.setenv("FEWSTEP_CHECKPOINT_ACTIVATIONS", "1")
    recomputed = learned()
    assert calls[1] > calls[0] > 0
    for name, value in recomputed.items():
        torch.testing.assert_close(value, expected[name], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("lora", [None, LORA], ids=["whole", "lora"])
@pytest.mark.parametrize("method", METHODS)
def test_a_student_takes_guidance_as_an_input(method: str, lora: dict[str, float] | None) -> None:
    """Drawn by the method, or that of its triplets; with all that the method evaluates besides."""
    prepare_images(64)
    backbone = import_miniature("sd")
    draw_triplets(backbone, guidance=(1.0, 3.0))
    values = config(method, lora).model_dump(by_alias=True) | {"guidance_embedding": True}
    if method not in ("direct", "sdxs"):
        values["guidance"] = (1.0, 3.0)
    chosen = method_module(method).Config.model_validate(values)
    features = untrained_classifier() if chosen.needs_feature_maps else None
    learn(Task("distill", "student", method, chosen, [TRIPLETS / "0"], 0, features))
    model = open_model(MODELS / "student", backbone)
    assert model.takes_guidance
    noise = torch.randn(2, *backbone.latent_shape, generator=torch.Generator().manual_seed(0))
    conditions, t = backbone.encode_prompts(["a red star"] * 2) | {"end_time": torch.zeros(2)}, torch.ones(2)
    predictions = [
        model.denoiser(noise, t, conditions | {"guidance": torch.full((2,), w)}).x_0 for w in (1, 3)
    ]
    assert not torch.equal(*predictions)
