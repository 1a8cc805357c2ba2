"""Stable Diffusion 1.5's geometry with random weights, for measurements without a checkpoint."""

from typing import Any

import diffusers as d
import transformers as t
from torch import nn

from fewstep.backbones.bpe import new_tokenizer
from fewstep.backbones.pipeline import CLIP_LENGTH
from fewstep.checks.untrained import filled
from fewstep.compression.choice import reduction_of
from fewstep.compression.reduction import FULL, reduced
from fewstep.methods.decoder import tiny_geometry

PROMPT = "a photo of a small red house on a green hill"
TOKENS = 600
"""Size of the stand-in's vocabulary. Prompts are padded to CLIP_LENGTH, so it changes no duration."""
DECODERS = ("tiny", "kl")
"""The small decoder of docs/compression.md with 1.22 million parameters, and Stable Diffusion's own."""


def unet(size: str = FULL, side: int = 64) -> nn.Module:
    """The U-Net of a size of docs/compression.md; side: of its latents."""
    net: nn.Module = d.UNet2DConditionModel(cross_attention_dim=768, sample_size=side)
    return net if size == FULL else reduced(net, reduction_of(net, size, None))


def text_encoder() -> nn.Module:
    """The text encoder of CLIP ViT-L/14."""
    net: nn.Module = t.CLIPTextModel(
        t.CLIPTextConfig(hidden_size=768, intermediate_size=3072, num_attention_heads=12)
    )
    return net


def autoencoder(kind: str = "kl") -> nn.Module:
    """An autoencoder with the decoder `kind`, one of DECODERS."""
    if kind == "tiny":
        return tiny_geometry(4, 8, 64)
    net: nn.Module = d.AutoencoderKL(
        block_out_channels=(128, 256, 512, 512),
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        layers_per_block=2,
        sample_size=512,
    )
    return net


def scheduler() -> Any:
    """Stable Diffusion's noise schedule."""
    return d.DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        steps_offset=1,
        clip_sample=False,
        set_alpha_to_one=False,
        timestep_spacing="trailing",
    )


def pipeline(size: str = FULL, decoder: str = "kl", side: int = 64) -> Any:
    """The stock pipeline on the device; its images have 8 `side` pixels a side."""
    return d.StableDiffusionPipeline(
        vae=filled(lambda: autoencoder(decoder)),
        text_encoder=filled(text_encoder),
        tokenizer=new_tokenizer([PROMPT], TOKENS, CLIP_LENGTH),
        unet=filled(lambda: unet(size, side)),
        scheduler=scheduler(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
