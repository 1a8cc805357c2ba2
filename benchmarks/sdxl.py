"""Stable Diffusion XL's geometry with random weights, for measurements without a checkpoint."""

from typing import Any

import diffusers as d
import transformers as t
from benchmarks.sd15 import PROMPT, TOKENS, autoencoder, scheduler, text_encoder
from torch import nn

from fewstep.backbones.bpe import new_tokenizer
from fewstep.backbones.pipeline import CLIP_LENGTH
from fewstep.checks.untrained import filled


def unet(side: int = 128) -> nn.Module:
    """The U-Net; side: of its latents."""
    net: nn.Module = d.UNet2DConditionModel(
        sample_size=side,
        block_out_channels=(320, 640, 1280),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        transformer_layers_per_block=(1, 2, 10),
        attention_head_dim=(5, 10, 20),
        cross_attention_dim=2048,
        use_linear_projection=True,
        addition_embed_type="text_time",
        addition_time_embed_dim=256,
        projection_class_embeddings_input_dim=2816,
    )
    return net


def larger_text_encoder() -> nn.Module:
    """The text encoder of OpenCLIP ViT-bigG/14."""
    net: nn.Module = t.CLIPTextModelWithProjection(
        t.CLIPTextConfig(
            hidden_size=1280,
            intermediate_size=5120,
            num_hidden_layers=32,
            num_attention_heads=20,
            projection_dim=1280,
            hidden_act="gelu",
        )
    )
    return net


def pipeline(side: int = 128) -> Any:
    """The stock pipeline on the device; its images have 8 `side` pixels a side."""
    tokenizer = new_tokenizer([PROMPT], TOKENS, CLIP_LENGTH)
    return d.StableDiffusionXLPipeline(
        vae=filled(autoencoder),
        text_encoder=filled(text_encoder),
        text_encoder_2=filled(larger_text_encoder),
        tokenizer=tokenizer,
        tokenizer_2=tokenizer,
        unet=filled(lambda: unet(side)),
        scheduler=scheduler(),
    )
