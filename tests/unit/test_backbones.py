"""Each family's adapter against the stock pipeline of diffusers: same weights, same noise, same numbers."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import diffusers as d
import numpy as np
import pytest
import torch

from fewstep.artifacts.manifest import Manifest, sha256
from fewstep.backbones.importing import import_teacher
from fewstep.backbones.model import open_model, save_model
from fewstep.backbones.pipeline import DiffusersBackbone
from fewstep.backbones.prompts import encode_distinct
from fewstep.backbones.protocol import Backbone
from fewstep.backbones.registry import family, open_backbone
from fewstep.config.sampling import SamplingConfig
from fewstep.config.teacher import ImportTeacherConfig
from fewstep.core.errors import UserError
from fewstep.core.files import whole_folder
from fewstep.diffusion.solvers import Solver, trailing
from fewstep.sampling.draw import Sampler
from tests.pipelines import CAPTIONS, MAKERS, backbone_of, make

PROMPTED = ["sd", "sdxl", "pixart", "pixart_sigma", "sd3", "flux", "sana"]
EULER = {"sana": {"euler": True}}
"""Its published scheduler truncates the times that the network receives; it has a test of its own."""
TRAILING = {"timestep_spacing": "trailing", "clip_sample": False, "set_alpha_to_one": True}

Import = Callable[..., tuple[Any, Backbone, Path]]


@pytest.fixture(autouse=True)
def float32(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "no")


@pytest.fixture
def imported(tmp_path: Path) -> Import:
    """Makes a stock pipeline, imports it, and opens the adapter on the artifact."""

    def run(family: str, **options: Any) -> tuple[Any, Backbone, Path]:
        pipeline = make(family, tmp_path / "stock", **options)
        pipeline.set_progress_bar_config(disable=True)
        with whole_folder(tmp_path / "teacher") as staging:
            metadata = import_teacher(
                str(tmp_path / "stock"), backbone_of(family), ImportTeacherConfig(), staging
            )
            Manifest.seal(staging, "teacher", metadata, {})
        return pipeline, open_backbone(tmp_path / "teacher"), tmp_path / "teacher"

    return run


def drawn(backbone: Backbone, folder: Path, noise: torch.Tensor, steps: int, **sampling: Any) -> torch.Tensor:
    """The chain's own latents of CAPTIONS."""
    sampler = Sampler(open_model(folder, backbone), backbone, SamplingConfig(**sampling))
    with torch.no_grad():
        return sampler.latents(backbone.encode_prompts(CAPTIONS), noise, steps)


def stock(
    pipeline: Any, backbone: Backbone, family: str, noise: torch.Tensor, steps: int, guidance: float
) -> torch.Tensor:
    """The same by diffusers, from the prompts themselves."""
    assert isinstance(backbone, DiffusersBackbone)
    negative = None if family == "sdxl" else [""] * len(CAPTIONS)
    scale = {"true_cfg_scale": guidance} if family == "flux" else {"guidance_scale": guidance}
    return backbone.stock_latents(pipeline, noise, steps, prompt=CAPTIONS, negative_prompt=negative, **scale)


@pytest.mark.parametrize("family", PROMPTED)
@pytest.mark.parametrize(("steps", "guidance", "tolerance"), [(1, 1.0, 1e-5), (1, 4.0, 1e-5), (5, 4.0, 1e-4)])
def test_latents_are_the_stock_pipelines(
    family: str, steps: int, guidance: float, tolerance: float, imported: Import
) -> None:
    pipeline, backbone, folder = imported(family, **EULER.get(family, {}))
    if family not in ("sd3", "flux", "sana"):
        pipeline.scheduler = d.DDIMScheduler.from_config(pipeline.scheduler.config, **TRAILING)
    noise = torch.randn(2, *backbone.latent_shape, generator=torch.Generator().manual_seed(1))
    ours = drawn(backbone, folder, noise, steps, solver=Solver.DDIM, guidance=guidance)
    theirs = stock(pipeline, backbone, family, noise, steps, guidance)
    assert theirs.std() > 0.1
    torch.testing.assert_close(ours, theirs, atol=tolerance * float(theirs.abs().max()), rtol=0)


def test_flux_schnell_draws_as_stock(imported: Import) -> None:
    pipeline, backbone, folder = imported("flux", guided=False)
    noise = torch.randn(2, *backbone.latent_shape, generator=torch.Generator().manual_seed(1))
    ours = drawn(backbone, folder, noise, 4, solver=Solver.DDIM, guidance=1.0)
    theirs = stock(pipeline, backbone, "flux", noise, 4, 1.0)
    assert backbone.times(4) == pytest.approx(trailing(4))
    torch.testing.assert_close(ours, theirs, atol=1e-4 * float(theirs.abs().max()), rtol=0)


@pytest.mark.parametrize("steps", [1, 5])
def test_sanas_published_scheduler_differs_by_its_start_and_rounding_alone(
    steps: int, imported: Import
) -> None:
    pipeline, backbone, _ = imported("sana")
    noise = torch.randn(2, *backbone.latent_shape, generator=torch.Generator().manual_seed(1))
    theirs = stock(pipeline, backbone, "sana", noise, steps, 4.0)
    scheduler = pipeline.scheduler
    scheduler.set_timesteps(steps)
    assert scheduler.timesteps.dtype == torch.int64
    assert backbone.times(steps)[1:] == scheduler.sigmas[1:].tolist()
    assert backbone.times(steps)[0] == 1.0 == pytest.approx(float(scheduler.sigmas[0]), abs=4e-4)
    network, x = backbone.network(backbone.net), noise
    with torch.no_grad():
        text, empty = backbone.encode_prompts(CAPTIONS), backbone.encode_prompts([""] * len(CAPTIONS))
        for t in scheduler.timesteps:
            without, with_text = (network(x, t.expand(len(x)), each) for each in (empty, text))
            x = scheduler.step(without + 4.0 * (with_text - without), t, x).prev_sample
    torch.testing.assert_close(x, theirs, atol=1e-5 * float(theirs.abs().max()), rtol=0)


def test_pixart_at_1024_pixels_receives_the_size(imported: Import) -> None:
    pipeline, backbone, folder = imported("pixart", side=128)
    pipeline.scheduler = d.DDIMScheduler.from_config(pipeline.scheduler.config, **TRAILING)
    noise = torch.randn(2, *backbone.latent_shape, generator=torch.Generator().manual_seed(1))
    ours = drawn(backbone, folder, noise, 1, solver=Solver.DDIM, guidance=4.0)
    theirs = stock(pipeline, backbone, "pixart", noise, 1, 4.0)
    assert set(backbone.encode_prompts(CAPTIONS)) == {"text", "mask", "resolution", "aspect_ratio"}
    torch.testing.assert_close(ours, theirs, atol=1e-5 * float(theirs.abs().max()), rtol=0)


@pytest.mark.parametrize("family", PROMPTED)
def test_images_are_the_stock_pipelines_and_encode_inverts_their_scaling(
    family: str, imported: Import
) -> None:
    pipeline, backbone, _ = imported(family)
    latents = torch.randn(2, *backbone.latent_shape, generator=torch.Generator().manual_seed(2))
    vae = pipeline.vae
    shift = vae.config.get("shift_factor") or 0.0
    with torch.no_grad():
        torch.testing.assert_close(
            backbone.decode(latents), vae.decode(latents / vae.config.scaling_factor + shift).sample
        )
        images = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(3)) * 2 - 1
        raw = vae.encode(images).latent if family == "sana" else vae.encode(images).latent_dist.mean
        torch.testing.assert_close(backbone.encode(images), (raw - shift) * vae.config.scaling_factor)


@pytest.mark.parametrize("classes", [None, 10])
def test_pixel_models_draw_as_stock_ddim(classes: int | None, imported: Import) -> None:
    pipeline, backbone, folder = imported("pixel", classes=classes)
    scheduler = d.DDIMScheduler.from_config(pipeline.scheduler.config, **TRAILING)
    x = noise = torch.randn(2, *backbone.latent_shape, generator=torch.Generator().manual_seed(1))
    prompts = ["3", "7"]
    label = torch.tensor([3, 7]) if classes else None
    scheduler.set_timesteps(5)
    with torch.no_grad():
        for t in scheduler.timesteps:
            x = scheduler.step(pipeline.unet(x, t, label).sample, t, x).prev_sample
        sampler = Sampler(
            open_model(folder, backbone), backbone, SamplingConfig(solver=Solver.DDIM, guidance=1.0)
        )
        ours = sampler.latents(backbone.encode_prompts(prompts), noise, 5)
    torch.testing.assert_close(ours, x, atol=1e-4, rtol=1e-4)
    if classes:
        with pytest.raises(UserError, match="0 to 9"):
            backbone.encode_prompts(["a dog"])


@pytest.mark.parametrize("family", sorted(MAKERS))
def test_a_model_of_the_family_survives_saving(family: str, imported: Import, tmp_path: Path) -> None:
    _, backbone, folder = imported(family)
    teacher = open_model(folder, backbone)
    save_model(tmp_path / "copy", teacher, backbone, "none", {"teacher": folder})
    again = open_model(tmp_path / "copy", backbone)
    assert {n: p.shape for n, p in again.net.named_parameters()} == {
        n: p.shape for n, p in teacher.net.named_parameters()
    }
    assert all(
        torch.equal(a, b) for a, b in zip(again.net.parameters(), teacher.net.parameters(), strict=True)
    )


def test_a_moved_folder_is_the_same_teacher(tmp_path: Path) -> None:
    make("sd", tmp_path / "here")
    (tmp_path / "here").rename(tmp_path / "there")
    make("sd", tmp_path / "here")
    seals = []
    for place in ("here", "there"):
        with whole_folder(tmp_path / f"from-{place}") as staging:
            metadata = import_teacher(str(tmp_path / place), "sd", ImportTeacherConfig(), staging)
            Manifest.seal(staging, "teacher", metadata, {})
        seals.append(sha256(tmp_path / f"from-{place}" / "manifest.json"))
    assert seals[0] == seals[1]


def test_the_licence_of_a_teacher_is_carried(tmp_path: Path) -> None:
    make("sd", tmp_path / "stock")
    (tmp_path / "stock/README.md").write_text("---\nlicense: openrail++\n---\n# A model\n")
    metadata = import_teacher(str(tmp_path / "stock"), "sd", ImportTeacherConfig(), tmp_path / "out")
    assert metadata["licence"] == "openrail++"


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda folder: (folder / "model_index.json").unlink(), "model_index.json"),
        (lambda folder: (folder / "unet/diffusion_pytorch_model.safetensors").unlink(), "unet: has no"),
        (
            lambda folder: (folder / "model_index.json").write_text(
                json.dumps({"_class_name": "StableDiffusionPipeline", "unet": ["my_code", "Net"]})
            ),
            "code of its own",
        ),
    ],
    ids=["no pipeline", "weights missing", "foreign code"],
)
def test_what_cannot_be_imported_is_refused_by_name(
    spoil: Callable[[Path], None], message: str, tmp_path: Path
) -> None:
    make("sd", tmp_path / "stock")
    spoil(tmp_path / "stock")
    with pytest.raises(UserError, match=message):
        import_teacher(str(tmp_path / "stock"), "sd", ImportTeacherConfig(), tmp_path / "out")


def test_a_pipeline_of_another_family_is_named(tmp_path: Path) -> None:
    make("sana", tmp_path / "stock")
    with pytest.raises(UserError, match=r"is a SanaPipeline.*takes a PixArtAlphaPipeline"):
        import_teacher(str(tmp_path / "stock"), "pixart", ImportTeacherConfig(), tmp_path / "out")


def test_an_unreachable_repository_is_reported_with_the_remedy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    config = ImportTeacherConfig(local_files_only=True)
    with pytest.raises(UserError, match="hf download nobody/nothing"):
        import_teacher("nobody/nothing", "sd", config, tmp_path / "out")


def test_an_unknown_family_names_the_known_ones(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"custom, flux, pixart, pixel, sana, sd, sd3, sdxl"):
        import_teacher(str(tmp_path), "sd9", ImportTeacherConfig(), tmp_path / "out")


def test_distinct_prompts_are_encoded_once(imported: Import, monkeypatch: pytest.MonkeyPatch) -> None:
    _, backbone, _ = imported("pixel", classes=10)
    conditions, row = encode_distinct(backbone, ["3", "1", "3"])
    assert conditions["label"].tolist() == [1.0, 3.0]
    assert row.tolist() == [1, 0, 1]
    assert np.isfinite(conditions["label"].numpy()).all()


COUNTS = {
    "SD 1.x": 859_520_964,
    "SDXL": 2_567_463_684,
    "SD3": 2_028_328_000,
    "Flux": 11_901_408_320,
    "Sana": 1_604_462_752,
}


def test_prompts_that_are_cut_are_counted(imported: Import, capsys: pytest.CaptureFixture[str]) -> None:
    _, backbone, _ = imported("sd")
    encode_distinct(backbone, ["a red star", "a red star " * 9, "a red star"])
    assert "1 of 2 distinct prompts are longer than the text encoder reads" in capsys.readouterr().out


WIDTHS = (320, 640, 1280)


def test_real_configurations_have_the_published_parameter_counts() -> None:
    with torch.device("meta"):
        sd = d.UNet2DConditionModel(cross_attention_dim=768, sample_size=64)
        sdxl = d.UNet2DConditionModel(
            sample_size=128,
            block_out_channels=WIDTHS,
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
            transformer_layers_per_block=[1, 2, 10],
            attention_head_dim=[5, 10, 20],
            cross_attention_dim=2048,
            use_linear_projection=True,
            addition_embed_type="text_time",
            addition_time_embed_dim=256,
            projection_class_embeddings_input_dim=2816,
        )
        sd3 = d.SD3Transformer2DModel(
            sample_size=128,
            num_layers=24,
            num_attention_heads=24,
            caption_projection_dim=1536,
            joint_attention_dim=4096,
            pooled_projection_dim=2048,
            pos_embed_max_size=192,
        )
        pixart = d.PixArtTransformer2DModel(sample_size=64, use_additional_conditions=False)
        flux = d.FluxTransformer2DModel(guidance_embeds=True)
        sana = d.SanaTransformer2DModel(caption_channels=2304)
    nets = {"SD 1.x": sd, "SDXL": sdxl, "SD3": sd3, "PixArt": pixart, "Flux": flux, "Sana": sana}
    count = {name: sum(p.numel() for p in net.parameters()) for name, net in nets.items()}
    assert {name: count[name] for name in COUNTS} == COUNTS
    assert count["PixArt"] == pytest.approx(0.6e9, rel=0.02)


def test_an_unknown_family_is_named_with_those_there_are() -> None:
    with pytest.raises(UserError, match=r"teacher\.backbone = 'sdx': no such family; known: .*sdxl"):
        family("sdx")
