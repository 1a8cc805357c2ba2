"""What leaves the chain, loaded by stock diffusers in a clean process, draws the chain's own latents."""

import json
import subprocess
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from shutil import copytree
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from fewstep.artifacts.manifest import Manifest, sha256
from fewstep.backbones.importing import import_teacher
from fewstep.backbones.model import Model, open_model, save_model
from fewstep.backbones.protocol import Backbone
from fewstep.backbones.registry import open_backbone
from fewstep.config.sampling import SamplingConfig
from fewstep.config.teacher import ImportTeacherConfig
from fewstep.core.errors import UserError
from fewstep.core.files import whole_folder
from fewstep.core.paths import TEACHER
from fewstep.diffusion.denoiser import Prediction
from fewstep.diffusion.sampling import STUDENTS, Guidance, Sampling
from fewstep.diffusion.schedules import RectifiedFlow
from fewstep.diffusion.solvers import Solver
from fewstep.export.pipeline import export
from fewstep.sampling.draw import Sampler
from tests.began import BEGAN_IN, PYTHON
from tests.miniature import imported
from tests.pipelines import CAPTIONS, make, pack

FAMILIES = ("sd", "sdxl", "pixart", "sd3", "flux", "sana", "pixel")
STEPS = (1, 2, 4)
OWN_PATH = 3  # does not divide the table
ZERO_SNR = {"prediction_type": "v_prediction", "rescale_betas_zero_snr": True}

# It knows diffusers and the folder, nothing of ours.
STRANGER = """
import json, sys
import torch, diffusers
from pathlib import Path
from safetensors.torch import load_file, save_file

assert not any(name.startswith("fewstep") for name in sys.modules)
for place in sys.argv[1:]:
    folder = Path(place)
    call = json.loads((folder / "fewstep.json").read_text())["call"]
    noise = load_file(folder.with_suffix(".noise.safetensors"))["noise"]
    pipe = diffusers.DiffusionPipeline.from_pretrained(folder)
    pipe.set_progress_bar_config(disable=True)
    if "unconditional" in folder.name:
        x = noise
        pipe.scheduler.set_timesteps(call["num_inference_steps"])
        for t in pipe.scheduler.timesteps:
            x = pipe.scheduler.step(pipe.unet(x, t).sample, t, x, eta=0.0).prev_sample.detach()
    else:
        if "clean_caption" in call:
            call["use_resolution_binning"] = False  # the miniature is smaller than any known size
        prompts = json.loads(folder.with_suffix(".prompts.json").read_text())
        generator = torch.manual_seed(7)  # the global one: not every pipeline gives its scheduler another
        x = pipe(prompts, latents=noise, output_type="latent", generator=generator, **call).images
    save_file({"latents": x.contiguous()}, folder.with_suffix(".stock.safetensors"))
"""


@pytest.fixture(autouse=True)
def float32(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "no")


def teacher_of(family: str, folder: Path, **options: Any) -> Backbone:
    """A miniature teacher artifact, opened."""
    made = imported(family, **options)
    copytree(made / "stock", folder.with_name(f"{folder.name}-stock"))
    copytree(made / TEACHER, folder)
    return open_backbone(folder)


def student_of(
    backbone: Backbone,
    teacher: Path,
    folder: Path,
    steps: int,
    straight: bool = True,
    sampling: Sampling = STUDENTS,
) -> Model:
    """The teacher's own network as a student for `steps` steps, saved and opened again."""
    model = open_model(teacher, backbone)
    denoiser = model.denoiser.on(RectifiedFlow()) if straight else model.denoiser
    save_model(
        folder,
        replace(model, name=folder.name, denoiser=denoiser, steps=steps, sampling=sampling),
        backbone,
        "reflow",
        {"teacher": teacher},
    )
    return open_model(folder, backbone)


def exported(
    root: Path, name: str, family: str, teacher: Path, steps: int, straight: bool
) -> tuple[Path, torch.Tensor]:
    """A student of the teacher as a folder of diffusers with its input beside it, and the latents to draw."""
    backbone = open_backbone(teacher)
    noise = torch.randn(2, *backbone.latent_shape, generator=torch.Generator().manual_seed(1))
    model = student_of(backbone, teacher, root / "models" / name, steps, straight)
    out = root / "exports" / name
    export(out, model, root / "models" / name, teacher, backbone)
    with torch.no_grad():
        conditions = backbone.encode_prompts(CAPTIONS)
    latents = Sampler(model, backbone, SamplingConfig()).latents(conditions, noise, steps)
    if family == "flux":
        noise, latents = pack(noise), pack(latents)
    save_file({"noise": noise}, out.with_suffix(".noise.safetensors"))
    out.with_suffix(".prompts.json").write_text(json.dumps(CAPTIONS))
    return out, latents


def drawn_by_a_stranger(ours: Iterable[Path], folder: Path) -> None:
    """Draw with these exports in a process without fewstep."""
    script = folder / "stranger.py"
    script.write_text(STRANGER)
    subprocess.run([PYTHON, script, *map(str, ours)], check=True, cwd=folder, env=BEGAN_IN)


def test_stock_diffusers_draws_the_chains_own_latents(tmp_path: Path) -> None:
    ours: dict[Path, torch.Tensor] = {}
    for family in FAMILIES:
        teacher_of(family, tmp_path / family)
        for steps in STEPS:
            name = f"{family}-{steps}" + ("-unconditional" if family == "pixel" else "")
            out, latents = exported(tmp_path, name, family, tmp_path / family, steps, family != "pixel")
            ours[out] = latents
    out, latents = exported(tmp_path, "own", "sd", tmp_path / "sd", OWN_PATH, straight=False)
    ours[out] = latents
    for family in ("sd", "sdxl"):
        teacher = tmp_path / f"{family}-zero-snr"
        teacher_of(family, teacher, **ZERO_SNR)
        for steps in (2, 4, OWN_PATH):
            name = f"{teacher.name}-{steps}"
            out, latents = exported(tmp_path, name, family, teacher, steps, steps != OWN_PATH)
            ours[out] = latents
    drawn_by_a_stranger(ours, tmp_path)
    for out, expected in ours.items():
        stock = load_file(out.with_suffix(".stock.safetensors"))["latents"]
        error = float((stock - expected).abs().max() / expected.abs().max())
        assert error < 1e-4, f"{out.name}: {error}"


def test_stock_diffusers_draws_the_chains_renoised_latents(tmp_path: Path) -> None:
    """With the same fresh noise: the pipeline's generator draws it step by step."""
    ours: dict[Path, torch.Tensor] = {}
    times: dict[int, tuple[float, ...]] = {3: (1.0, 0.7, 0.2, 0.0)}
    for family in ("sd", "sdxl", "pixart", "sd3", "sana"):
        teacher_of(family, tmp_path / family)
        # A flow's noise before time 1 has another scale in stock pipelines; see the refusals below.
        later: dict[int, tuple[float, ...]] = {} if family in ("sd3", "sana") else {1: (0.6, 0.0)}
        renoised = Sampling(Solver.RENOISE, Guidance.BUILT_IN, times | later)
        for steps in (1, 3, 4):
            backbone = open_backbone(tmp_path / family)
            folder = tmp_path / "models" / f"{family}-{steps}"
            model = student_of(backbone, tmp_path / family, folder, steps, straight=False, sampling=renoised)
            out = tmp_path / "exports" / folder.name
            export(out, model, folder, tmp_path / family, backbone)
            noise = torch.randn(2, *backbone.latent_shape, generator=torch.Generator().manual_seed(1))
            generator = torch.Generator().manual_seed(7)
            with torch.no_grad():
                conditions = backbone.encode_prompts(CAPTIONS)
            drawn = [torch.randn(noise.shape, generator=generator) for _ in range(steps)]
            sampler = Sampler(model, backbone, SamplingConfig())
            ours[out] = sampler.latents(conditions, noise, steps, drawn.__getitem__)
            save_file({"noise": noise}, out.with_suffix(".noise.safetensors"))
            out.with_suffix(".prompts.json").write_text(json.dumps(CAPTIONS))
    drawn_by_a_stranger(ours, tmp_path)
    for out, expected in ours.items():
        stock = load_file(out.with_suffix(".stock.safetensors"))["latents"]
        error = float((stock - expected).abs().max() / expected.abs().max())
        assert error < 1e-4, f"{out.name}: {error}"


@pytest.mark.parametrize(
    ("family", "solver", "times", "message"),
    [
        (
            "sd",
            Solver.RENOISE,
            {2: (1.0, 0.70012, 0.0)},
            r"adds fresh noise at the times 1, 0\.70012 of DiscreteVP",
        ),
        ("sd", Solver.DDIM, {2: (1.0, 0.7, 0.0)}, "takes DDIM steps at the model's times"),
        ("sd3", Solver.RENOISE, {2: (0.6, 0.3, 0.0)}, r"adds fresh noise at the times 0\.6, 0\.3 of Recti"),
    ],
)
def test_times_that_no_stock_scheduler_takes_are_refused(
    family: str, solver: Solver, times: dict[int, tuple[float, ...]], message: str, tmp_path: Path
) -> None:
    backbone = teacher_of(family, tmp_path / "t")
    sampling = Sampling(solver, Guidance.BUILT_IN, times)
    model = student_of(backbone, tmp_path / "t", tmp_path / "m" / "own", 2, False, sampling)
    with pytest.raises(UserError, match=rf"export\.own: no scheduler of diffusers {message}"):
        export(tmp_path / "out", model, tmp_path / "m" / "own", tmp_path / "t", backbone)


def test_the_card_shows_the_call_and_carries_the_licence(tmp_path: Path) -> None:
    make("sd", tmp_path / "t-stock")
    (tmp_path / "t-stock/README.md").write_text("---\nlicense: openrail++\n---\n")
    with whole_folder(tmp_path / "t") as staging:
        metadata = import_teacher(str(tmp_path / "t-stock"), "sd", ImportTeacherConfig(), staging)
        Manifest.seal(staging, "teacher", metadata, {})
    backbone = open_backbone(tmp_path / "t")
    model = student_of(backbone, tmp_path / "t", tmp_path / "m" / "fast", 1)
    places = [tmp_path / "a" / "fast", tmp_path / "b" / "fast"]
    for place in places:
        export(place, model, tmp_path / "m" / "fast", tmp_path / "t", backbone)
    card = (places[0] / "README.md").read_text()
    assert "license: openrail++" in card
    assert "num_inference_steps=1, guidance_scale=0.0" in card
    assert sha256(places[0] / "manifest.json") == sha256(places[1] / "manifest.json")
    with safe_open(places[0] / "model.safetensors", "pt") as file:
        assert json.loads(file.metadata()["fewstep"])["steps"] == 1
        assert set(file.keys()) == set(model.net.state_dict())


def test_what_diffusers_cannot_draw_is_refused_with_the_way_out(tmp_path: Path) -> None:
    backbone = teacher_of("sd", tmp_path / "t")
    model = student_of(backbone, tmp_path / "t", tmp_path / "m" / "raw", 1)
    raw = replace(
        model,
        denoiser=replace(model.denoiser, schedule=RectifiedFlow(), prediction=Prediction.FLOW),
    )
    with pytest.raises(UserError, match=r"export\.raw.*init: exact"):
        export(tmp_path / "out", raw, tmp_path / "m" / "raw", tmp_path / "t", backbone)
    for family, options, steps in (("pixel", {}, 2), ("pixel", {"classes": 3}, 1)):
        teacher = tmp_path / f"{family}-{steps}"
        pixel = teacher_of(family, teacher, **options)
        flow = student_of(pixel, teacher, tmp_path / "m" / "flow", steps)
        with pytest.raises(UserError, match="DDIMPipeline knows no classes"):
            export(tmp_path / "out", flow, tmp_path / "m" / "flow", teacher, pixel)
    with pytest.raises(UserError, match=r"export\.raw\.steps = 16: .* take fewer"):
        export(tmp_path / "out", model, tmp_path / "m" / "raw", tmp_path / "t", backbone, steps=16)
    with pytest.raises(UserError, match="say how many"):
        export(tmp_path / "out", replace(model, steps=None), tmp_path / "m" / "raw", tmp_path / "t", backbone)
    assert not (tmp_path / "out").exists()
