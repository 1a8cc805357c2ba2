"""Proof that a teacher's artifact works: it encodes, decodes, and its step equals its stock pipeline's."""

from pathlib import Path
from typing import Any

import diffusers
import torch
from torch import Tensor

from fewstep.backbones.parts import component_names
from fewstep.backbones.pipeline import DiffusersBackbone
from fewstep.backbones.schedulers import is_flow
from fewstep.core.errors import UserError
from fewstep.core.hardware import device
from fewstep.diffusion.denoiser import Conditions, Denoiser
from fewstep.diffusion.solvers import Solver, solve

PROMPT, CLASS = "a red star", "0"
TOLERANCE = 1e-4
"""Largest allowed difference, relative to the largest latent.

Both sides round in float32, and the step to x_0 amplifies the rounding error by about 15.
"""
TRAILING = {"timestep_spacing": "trailing", "clip_sample": False, "set_alpha_to_one": True, "steps_offset": 1}


@torch.no_grad()
def prove(backbone: DiffusersBackbone, source: Path) -> str:
    """Compare one sampling step without guidance, from fixed noise, with the stock pipeline's step.

    Computed in float32 at the smallest size that the network takes. Returns the outcome as text. Raises
    UserError, naming source and numbers, if the chain's latents differ from the stock pipeline's or anything
    is not finite.
    """
    conditions = encoded_prompt(backbone)
    noise = torch.randn(1, *backbone.smallest_latent, generator=torch.Generator().manual_seed(0)).to(device())
    ours = one_step(backbone, conditions, noise)
    theirs = stock_step(backbone, conditions, noise)
    image = backbone.decode(ours)
    back = backbone.encode(image.clamp(-1, 1))
    finite(source, prompt=torch.cat([value.flatten() for value in conditions.values()] or [noise]))
    finite(source, step=ours, image=image, encoded=back)
    kind = backbone.pipeline_class
    difference, scale = float((ours - theirs).abs().max()), float(theirs.abs().max())
    if not difference <= TOLERANCE * scale:
        raise UserError(
            f"{source}: one step from the same noise differs from diffusers' {kind}: by {difference:.3g}, "
            f"where its latents reach {scale:.3g}; the teacher is of a kind that is not understood"
        )
    if back.shape != ours.shape:
        raise UserError(
            f"{source}: the autoencoder makes latents {tuple(back.shape[1:])} of an image from latents "
            f"{tuple(ours.shape[1:])}; its parts are of different models"
        )
    side = "x".join(map(str, noise.shape[1:]))
    return f"one step at {side} differs from {kind} by {difference:.1e} of {scale:.1e}"


def encoded_prompt(backbone: DiffusersBackbone) -> Conditions:
    """Conditions of a test prompt; frees the text encoders."""
    conditions = backbone.encode_prompts([PROMPT if backbone.prompt_length else CLASS])
    backbone.release_encoders()
    return conditions


def one_step(backbone: DiffusersBackbone, conditions: Conditions, noise: Tensor) -> Tensor:
    """The chain's latents."""
    schedule = backbone.schedule
    denoiser = Denoiser(backbone.network(backbone.net), schedule, backbone.prediction, schedule)
    return solve(Solver.DDIM, denoiser, noise, backbone.times(1), conditions, schedule)


def stock_step(backbone: DiffusersBackbone, conditions: Conditions, noise: Tensor) -> Tensor:
    """Latents of the stock pipeline with the same network and a scheduler that takes the chain's steps."""
    kind: Any = getattr(diffusers, backbone.pipeline_class)
    parts = {backbone.net_part: backbone.net, "scheduler": stock_scheduler(backbone.parts["scheduler"]())}
    if backbone.vae_class:
        parts["vae"] = backbone.vae
    pipeline = kind(**{name: parts.get(name) for name in component_names(kind)}, **backbone.pipeline_options)
    pipeline.set_progress_bar_config(disable=True)
    return backbone.stock_latents(pipeline, noise, 1, **backbone.stock_prompt(conditions)).float()


def stock_scheduler(own: Any) -> Any:
    """DDIM on the betas of the teacher's own scheduler; Euler for a rectified flow."""
    if is_flow({"_class_name": type(own).__name__, **own.config}):
        return diffusers.FlowMatchEulerDiscreteScheduler()
    return diffusers.DDIMScheduler(
        num_train_timesteps=len(own.betas),
        trained_betas=own.betas.tolist(),
        prediction_type=own.config.prediction_type,
        **TRAILING,
    )


def finite(source: Path, **values: Tensor) -> None:
    """Raises UserError naming the first tensor that is not finite."""
    for name, value in values.items():
        if not value.isfinite().all():
            raise UserError(
                f"{source}: the {name} of a test sample is not finite; the weights are damaged, or "
                "overflow in the dtype that they were saved in"
            )
