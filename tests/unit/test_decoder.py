"""The method `decoder`: a small autoencoder that decodes as the teacher's does."""

from pathlib import Path
from shutil import rmtree
from typing import Any

import pytest
import torch
from diffusers import AutoencoderTiny, DiffusionPipeline
from safetensors.torch import load_file
from torch import Tensor

from fewstep.backbones.model import open_model
from fewstep.backbones.protocol import Backbone
from fewstep.checks import settings
from fewstep.checks.plan import plan, trainings
from fewstep.config.sampling import SamplingConfig
from fewstep.core.errors import UserError
from fewstep.core.files import read_json
from fewstep.core.keyed import Key
from fewstep.core.paths import MODELS, TEACHER, TRIPLETS
from fewstep.export.pipeline import export
from fewstep.methods import decoder
from fewstep.sampling.draw import DECODER, Sampler
from fewstep.students.learn import Task, learn, method_module
from tests.interrupting import interrupted_and_resumed
from tests.miniature import draw_triplets, import_miniature, prepare_images
from tests.pipelines import CAPTIONS
from tests.unit.test_compress_checks import chain_of
from tests.unit.test_every_method import config as student_config
from tests.unit.test_every_method import project as project

TRAINING = {"steps": 3, "batch_size": 4, "learning_rate": 0.01, "ema": 0.5}
FAMILIES = ("sd", "sdxl", "pixart", "sd3", "flux", "sana")
PUBLISHED = {4: 1_222_531, 16: 1_229_443}
"""Channels of the latents -> parameters of a decoder: SDXS for 4; for 16, 12 x 9 x 64 more weights of
the first convolution."""


def config(**more: Any) -> decoder.Config:
    """The method's parameters, small."""
    values = {"from": "teacher", "width": 8, "own_share": 0.0, "downscale": 2, "training": TRAINING} | more
    return decoder.Config.model_validate(values)


def trained(backbone: Backbone, chosen: decoder.Config) -> dict[str, Tensor]:
    """Weights of the trained small autoencoder."""
    learn(Task("decoder@tiny", "tiny", "decoder", chosen, [TRIPLETS / "0"], 0))
    return open_model(MODELS / "tiny", backbone).parts[DECODER].state_dict()


@pytest.mark.parametrize("channels", PUBLISHED)
def test_its_geometry_is_published(channels: int) -> None:
    with torch.device("meta"):
        tiny = decoder.tiny_geometry(channels, 8, 64)
    assert sum(p.numel() for p in tiny.decoder.parameters()) == PUBLISHED[channels]
    assert PUBLISHED[16] - PUBLISHED[4] == (16 - 4) * 9 * 64


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_gets_one(family: str) -> None:
    prepare_images()
    backbone = import_miniature(family)
    draw_triplets(backbone)
    before = {name: value.clone() for name, value in backbone.net.state_dict().items()}
    weights = trained(backbone, config())
    model = open_model(MODELS / "tiny", backbone)
    assert all(torch.equal(value, before[name]) for name, value in model.net.state_dict().items())
    assert isinstance(model.parts[DECODER], AutoencoderTiny)
    assert all(value.isfinite().all() for value in weights.values())
    latents = torch.zeros(1, *backbone.latent_shape)
    assert Sampler(model, backbone, SamplingConfig()).decode(latents).shape == backbone.decode(latents).shape


def test_a_family_without_an_autoencoder_says_so() -> None:
    prepare_images(16)
    backbone = import_miniature("pixel")
    draw_triplets(backbone)
    with pytest.raises(UserError, match="no autoencoder"):
        trained(backbone, config())


def test_interrupted_it_resumes_to_the_same_bytes() -> None:
    prepare_images()
    backbone = import_miniature("sd")
    draw_triplets(backbone)
    learn(Task("distill", "student", "direct", student_config("direct"), [TRIPLETS / "0"], 0))
    chosen = config(**{"from": "student", "own_share": 0.5, "from_step": 1})
    whole = trained(backbone, chosen)
    rmtree(MODELS / "tiny")
    resumed = interrupted_and_resumed(decoder.METHOD, lambda: trained(backbone, chosen))
    assert all(torch.equal(value, whole[name]) for name, value in resumed.items())


def test_the_denoiser_stays_what_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its frozen weights are rounded while the decoder is trained, and float32 in the artifact."""
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    backbone = import_miniature("sd")
    prepare_images()
    draw_triplets(backbone)
    learn(Task("distill", "student", "direct", student_config("direct"), [TRIPLETS / "0"], 0))
    trained(backbone, config(**{"from": "student"}))
    files = [next((MODELS / name / "net").glob("*.safetensors")) for name in ("student", "tiny")]
    before, after = map(load_file, files)
    assert {weight.dtype for weight in after.values()} == {torch.float32}
    assert all(torch.equal(weight, before[name]) for name, weight in after.items())


def test_stock_diffusers_draws_with_it(tmp_path: Path) -> None:
    prepare_images()
    backbone = import_miniature("sd")
    draw_triplets(backbone)
    learn(Task("distill", "student", "direct", student_config("direct"), [TRIPLETS / "0"], 0))
    trained(backbone, config(**{"from": "student"}))
    model = open_model(MODELS / "tiny", backbone)
    assert model.steps == 1
    export(tmp_path / "out", model, MODELS / "tiny", TEACHER, backbone)
    stock: Any = DiffusionPipeline.from_pretrained(tmp_path / "out")
    stock.set_progress_bar_config(disable=True)
    assert type(stock.vae) is AutoencoderTiny
    noise = torch.randn(2, *backbone.latent_shape, generator=torch.Generator().manual_seed(1))
    call = read_json(tmp_path / "out" / "fewstep.json")["call"]
    images = stock(CAPTIONS, latents=noise, output_type="pt", **call).images
    with torch.no_grad():
        conditions = backbone.encode_prompts(CAPTIONS)
    expected = Sampler(model, backbone, SamplingConfig()).images(conditions, noise, 1)
    torch.testing.assert_close(images, (expected / 2 + 0.5).clamp(0, 1), atol=1e-4, rtol=0)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"lora": {"rank": 2, "alpha": 2.0}}, "the denoiser is not trained"),
        ({"guidance_embedding": True}, "the denoiser is not trained"),
        ({"own_share": 1.5}, "own_share"),
        ({"width": 0}, "width"),
        ({"downscale": 0}, "downscale"),
    ],
)
def test_impossible_settings_are_refused(more: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        config(**more)


def test_a_start_without_steps_cannot_sample() -> None:
    prepare_images()
    backbone = import_miniature("sd")
    draw_triplets(backbone)
    with pytest.raises(UserError, match=r"own_share: .* was not made for a number of steps"):
        trained(backbone, config(own_share=0.5))


def test_squares_that_do_not_fit_are_refused() -> None:
    prepare_images()
    backbone = import_miniature("sd")
    draw_triplets(backbone)
    with pytest.raises(UserError, match=r"downscale = 5: has to divide the images' side, \d+ pixels"):
        trained(backbone, config(downscale=5))


def test_its_discriminator_has_a_logit_per_patch() -> None:
    critic = decoder.patch_discriminator(Key(0, "critic"))
    assert critic(torch.zeros(2, 3, 32, 48)).shape == (2, 1, 4, 6)
    assert method_module("decoder").METHOD is decoder.TinyDecoder


def test_check_counts_no_training_of_a_denoiser() -> None:
    training = {"steps": 2, "batch_size": 16, "learning_rate": 1.0e-4}
    entry = {"from": "one_step", "data": "triplets", "training": training}
    chain = chain_of({"decoder.fast": entry, "evaluate.models.fast": [1]})
    assert "fast" not in trainings(chain) and "one_step" in trainings(chain)
    stages = {stage.name: stage for stage in plan(chain)}
    assert stages["fast"].disk == stages["one_step"].disk
    assert chain.trainings()["decoder.fast"].steps == 2
    assert [*settings.faults(chain)] == []
