"""A decoder of the user's: a folder of diffusers' `AutoencoderTiny`, such as TAESD (Bohan 2023)."""

from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from fewstep.backbones.configurations import CONFIG, fault, read_object
from fewstep.backbones.model import open_model, save_model
from fewstep.backbones.parts import load_part
from fewstep.backbones.pipeline import DiffusersBackbone
from fewstep.backbones.protocol import Backbone
from fewstep.backbones.registry import open_backbone
from fewstep.core.errors import UserError
from fewstep.core.hardware import device, to_device
from fewstep.core.paths import MODELS, TEACHER
from fewstep.core.processes import is_main_process
from fewstep.sampling.draw import DECODER

CLASS = "AutoencoderTiny"
BLOCKS = (3, 3, 3, 1)
"""AutoencoderTiny's default `num_decoder_blocks`."""
PLAIN = (1.0, 0.0)
"""Scaling and shift of a decoder that takes latents as the denoiser has them, as TAESD's do."""


def add_decoder(name: str, start: str, folder: Path) -> None:
    """Write the model `start` with the decoder in `folder` to `artifacts/models/<name>`; nothing is trained.

    Raises UserError naming the file and key that do not fit the teacher.
    """
    backbone = open_backbone(TEACHER)
    model = open_model(MODELS / start, backbone)
    parts = {**model.parts, DECODER: open_decoder(folder, backbone)}
    if is_main_process():
        inputs = {start: MODELS / start, "teacher": TEACHER}
        save_model(MODELS / name, replace(model, name=name, parts=parts), backbone, "decoder", inputs)


def open_decoder(folder: Path, backbone: Backbone) -> nn.Module:
    """The small autoencoder, on the device, in evaluation mode, after a trial. Raises UserError."""
    if not isinstance(backbone, DiffusersBackbone) or not backbone.vae_class:
        raise UserError("load: this teacher has no autoencoder, or one that is not of diffusers")
    if faults := list(decoder_faults(folder, backbone.vae.config)):
        raise UserError("\n".join(faults))
    decoder: nn.Module = to_device(load_part("diffusers", CLASS, folder)).eval()
    latents = torch.zeros(1, *backbone.latent_shape, device=device())
    with torch.no_grad():
        images, wanted = backbone.decode(latents, decoder), backbone.decode(latents)
    if images.shape != wanted.shape:
        shapes = f"{[*images.shape]}, the teacher's has {[*wanted.shape]}"
        raise UserError(f"{folder}: the image of a latent has the shape {shapes}; take a decoder for it")
    if not images.isfinite().all():
        raise UserError(f"{folder}: decodes to values that are not finite; its weights are damaged")
    return decoder


def decoder_faults(folder: Path, vae: Mapping[str, Any]) -> Iterator[str]:
    """Why a folder's decoder cannot replace that of the teacher's autoencoder, from its configuration alone.

    vae: the configuration of the teacher's; what it leaves out is unknown and not compared.
    """
    file = folder / CONFIG
    if not file.is_file():
        yield f"{file}: no such file; expected a folder of diffusers' {CLASS}, such as TAESD's"
        return
    try:
        config = read_object(file)
    except UserError as error:
        yield str(error)
        return
    if (kind := config.get("_class_name")) != CLASS:
        yield fault(file, "_class_name", kind, f"expected {CLASS}")
        return
    channels, wanted = config.get("latent_channels", 4), vae.get("latent_channels")
    if wanted not in (None, channels):
        yield fault(file, "latent_channels", channels, f"the teacher's latents have {wanted}")
    levels = vae.get("block_out_channels") or vae.get("encoder_block_out_channels")
    blocks = config.get("num_decoder_blocks", BLOCKS)
    factor = config.get("upsampling_scaling_factor", 2) ** (len(blocks) - 1)
    if levels and factor != 2 ** (len(levels) - 1):
        why = f"enlarges latents {factor} times, the teacher's autoencoder {2 ** (len(levels) - 1)} times"
        yield fault(file, "num_decoder_blocks", blocks, why)
    own = config.get("scaling_factor", 1.0), config.get("shift_factor") or 0.0
    teachers = vae.get("scaling_factor"), vae.get("shift_factor") or 0.0
    if teachers[0] is not None and own not in (PLAIN, teachers):
        why = f"expected {[*PLAIN]}, for latents as the denoiser has them, or the teacher's {[*teachers]}"
        yield fault(file, "scaling_factor, shift_factor", [*own], why)
