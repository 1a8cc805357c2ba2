"""Brings a Stable Diffusion 1.x / 2.x pipeline into the chain, from a diffusers folder or the hub."""

from functools import partial
from pathlib import Path

import torch
from diffusers import DDIMScheduler, StableDiffusionPipeline

from fewstep.backbones.sd import StableDiffusion, forget_origin
from fewstep.config.teacher import ImportTeacherConfig
from fewstep.diffusion.denoiser import Prediction
from fewstep.diffusion.schedules import DiscreteVP
from fewstep.errors import UserError


def import_pipeline(where: str, config: ImportTeacherConfig) -> StableDiffusionPipeline:
    """Load a pipeline; safetensors only. Raises UserError with the way out when it cannot be had."""
    try:
        return StableDiffusionPipeline.from_pretrained(
            where,
            revision=config.revision,
            variant=config.variant,
            torch_dtype=getattr(torch, config.dtype),
            local_files_only=config.local_files_only or Path(where).is_dir(),
            use_safetensors=True,
            safety_checker=None,
            requires_safety_checker=False,
        )
    except (OSError, ValueError) as error:
        raise UserError(
            f"params.yaml: teacher.load = [{where}]: cannot be loaded as a Stable Diffusion pipeline "
            f"({str(error).splitlines()[0]}). Give a diffusers folder with safetensors weights, or a hub id "
            f"that you may read: `hf auth login`, then `hf download {where}`"
        ) from error


def backbone_of(pipeline: StableDiffusionPipeline) -> StableDiffusion:
    """The pipeline's parts behind the adapter; schedule and prediction as its scheduler says."""
    scheduler = DDIMScheduler.from_config(pipeline.scheduler.config)
    schedule = DiscreteVP(tuple(scheduler.alphas_cumprod.double().tolist()))
    parts = {name: partial(pipeline.components.get, name) for name in pipeline.components}
    return StableDiffusion(parts, schedule, Prediction(scheduler.config.prediction_type))


def save_imported(pipeline: StableDiffusionPipeline, folder: Path) -> None:
    """Write the pipeline without a trace of where it came from: the artifact's hash is its content's."""
    pipeline.save_pretrained(folder)
    for part in ("unet", "vae", "text_encoder"):
        forget_origin(folder / part)
    forget_origin(folder, "model_index.json")
