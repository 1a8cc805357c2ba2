"""Foreign teachers for tests: edits that make a published kind of a miniature, and its import."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import diffusers as d
import torch

from fewstep.artifacts.manifest import Manifest
from fewstep.backbones.importing import import_teacher
from fewstep.backbones.model import open_model
from fewstep.backbones.pipeline import DiffusersBackbone
from fewstep.backbones.registry import open_backbone
from fewstep.backbones.understood import teacher_faults
from fewstep.config.sampling import SamplingConfig
from fewstep.config.teacher import ImportTeacherConfig
from fewstep.diffusion.solvers import Solver
from fewstep.sampling.draw import Sampler
from tests.pipelines import CAPTIONS

Edit = Callable[[Path], object]
UNET_WEIGHTS = "unet/diffusion_pytorch_model.safetensors"
LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 4265146304\n"


def change(file: str, **values: Any) -> Edit:
    """Set keys of a JSON file of the folder."""

    def run(folder: Path) -> None:
        path = folder / file
        path.write_text(json.dumps(json.loads(path.read_text()) | values))

    return run


def scheduler(**values: Any) -> Edit:
    return change("scheduler/scheduler_config.json", **values)


def net(**values: Any) -> Edit:
    return lambda folder: change(f"{net_part(folder)}/config.json", **values)(folder)


def net_part(folder: Path) -> str:
    return "unet" if (folder / "unet").exists() else "transformer"


def vae(**values: Any) -> Edit:
    return change("vae/config.json", **values)


def index(**values: Any) -> Edit:
    return change("model_index.json", **values)


def scheduler_class(name: str, **options: Any) -> Edit:
    """Another scheduler of diffusers, as it saves itself."""

    def run(folder: Path) -> None:
        shutil.rmtree(folder / "scheduler")
        getattr(d, name)(**options).save_pretrained(folder / "scheduler")
        index(scheduler=["diffusers", name])(folder)

    return run


def damage(file: str, content: bytes | None) -> Edit:
    """Other bytes in a file; None: it is gone."""

    def run(folder: Path) -> None:
        if content is None:
            (folder / file).unlink()
        else:
            (folder / file).write_bytes(content)

    return run


def rename(part: str, old: str, new: str) -> Edit:
    return lambda folder: (folder / part / old).rename(folder / part / new)


def imported(
    where: Path, family: str, folder: Path, **options: Any
) -> tuple[DiffusersBackbone, dict[str, Any]]:
    folder.mkdir()
    config = ImportTeacherConfig(**options)
    assert teacher_faults(where, family, config) == []
    metadata = import_teacher(str(where), family, config, folder)
    Manifest.seal(folder, "teacher", metadata, {})
    backbone = open_backbone(folder)
    assert isinstance(backbone, DiffusersBackbone)
    return backbone, metadata


def assert_draws_as_stock(
    backbone: DiffusersBackbone, folder: Path, pipeline: Any, steps: int, **call: Any
) -> None:
    """From the same noise, without guidance; the pipeline has a scheduler that steps as the chain does."""
    pipeline.set_progress_bar_config(disable=True)
    noise = torch.randn(2, *backbone.latent_shape, generator=torch.Generator().manual_seed(1))
    sampler = Sampler(open_model(folder, backbone), backbone, SamplingConfig(solver=Solver.DDIM))
    with torch.no_grad():
        ours = sampler.latents(backbone.encode_prompts(CAPTIONS), noise, steps)
    theirs = backbone.stock_latents(pipeline, noise, steps, prompt=CAPTIONS, **call)
    torch.testing.assert_close(ours, theirs, atol=1e-4 * float(theirs.abs().max()), rtol=0)
