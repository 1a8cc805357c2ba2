"""An untrained Stable Diffusion pipeline of any size, configured by params."""

from collections.abc import Iterable, Sequence
from functools import cached_property, partial
from pathlib import Path

import torch
from diffusers import (
    AutoencoderKL,
    DPMSolverMultistepScheduler,
    StableDiffusionPipeline,
    UNet2DConditionModel,
)
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from fewstep.backbones.bpe import new_tokenizer
from fewstep.backbones.parts import forget_origin
from fewstep.backbones.sd import StableDiffusion
from fewstep.config.teacher import NetConfig, TextConfig, TrainTeacherConfig, VaeConfig
from fewstep.core.hardware import upload
from fewstep.core.keyed import Key
from fewstep.diffusion.denoiser import Prediction
from fewstep.diffusion.schedules import DiscreteVP


class NewStableDiffusion(StableDiffusion):
    """Stable Diffusion whose text encoder is trained too."""

    @cached_property
    def text_encoder(self) -> CLIPTextModel:
        """The text transformer."""
        return self.module("text_encoder")

    def tokens(self, prompts: Sequence[str]) -> torch.Tensor:
        """Token ids `[B, L]`, padded to and cut at the text encoder's length."""
        encoded = self.tokenizer(list(prompts), padding="max_length", truncation=True, return_tensors="pt")
        return upload(encoded.input_ids)


def new_vae(config: VaeConfig) -> AutoencoderKL:
    """Encoder and decoder with one level per entry of `channels`."""
    levels = len(config.channels)
    vae = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * levels,
        up_block_types=("UpDecoderBlock2D",) * levels,
        block_out_channels=config.channels,
        layers_per_block=config.layers,
        latent_channels=config.latent_channels,
        norm_num_groups=8,
        mid_block_add_attention=False,
    )
    # Start with almost noiseless latents: at unit variance the decoder would first have to learn to denoise.
    torch.nn.init.constant_(vae.quant_conv.bias[config.latent_channels :], -6.0)
    return vae


def new_text_encoder(config: TextConfig, tokenizer: CLIPTokenizer) -> CLIPTextModel:
    """A small CLIP text transformer."""
    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=config.width,
            intermediate_size=4 * config.width,
            num_hidden_layers=config.layers,
            num_attention_heads=config.heads,
            max_position_embeddings=config.length,
            projection_dim=config.width,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )


def new_net(config: NetConfig, side: int, latent_channels: int, text_width: int) -> UNet2DConditionModel:
    """The denoising U-Net over latents of `side` x `side`."""
    down = tuple("CrossAttnDownBlock2D" if attends else "DownBlock2D" for attends in config.attention)
    up = tuple("CrossAttnUpBlock2D" if attends else "UpBlock2D" for attends in reversed(config.attention))
    return UNet2DConditionModel(
        sample_size=side,
        in_channels=latent_channels,
        out_channels=latent_channels,
        down_block_types=down,
        up_block_types=up,
        block_out_channels=config.channels,
        layers_per_block=config.layers,
        cross_attention_dim=text_width,
        # In diffusers this argument is the number of heads.
        attention_head_dim=tuple(max(1, width // config.head_channels) for width in config.channels),
        norm_num_groups=config.groups,
    )


def new_stable_diffusion(
    config: TrainTeacherConfig, resolution: int, captions: Iterable[str], seed: int
) -> NewStableDiffusion:
    """All the parts, with weights drawn from the seed; v-prediction on diffusers' cosine schedule."""
    torch.manual_seed(Key(seed, "teacher/init").seed32(0))
    tokenizer = new_tokenizer(captions, config.text.vocabulary, config.text.length)
    side = resolution >> (len(config.vae.channels) - 1)
    made = {
        "unet": new_net(config.net, side, config.vae.latent_channels, config.text.width),
        "vae": new_vae(config.vae),
        "text_encoder": new_text_encoder(config.text, tokenizer),
        "tokenizer": tokenizer,
    }
    schedule = DiscreteVP(tuple(new_scheduler().alphas_cumprod.double().tolist()))
    return NewStableDiffusion({name: partial(made.get, name) for name in made}, schedule, Prediction.V)


def new_scheduler() -> DPMSolverMultistepScheduler:
    """The scheduler a stock pipeline samples the teacher with."""
    return DPMSolverMultistepScheduler(
        beta_schedule="squaredcos_cap_v2",
        prediction_type="v_prediction",
        timestep_spacing="trailing",
        steps_offset=1,  # unused by `trailing` spacing; the stock pipeline warns about other values
    )


def save_pipeline(backbone: NewStableDiffusion, folder: Path) -> None:
    """Write a folder that `StableDiffusionPipeline.from_pretrained` loads."""
    # Otherwise the saved tokenizer would record the truncation and padding of its last call.
    backbone.tokenizer.backend_tokenizer.no_truncation()
    backbone.tokenizer.backend_tokenizer.no_padding()
    StableDiffusionPipeline(
        vae=backbone.vae,
        text_encoder=backbone.text_encoder,
        tokenizer=backbone.tokenizer,
        unet=backbone.net,
        scheduler=new_scheduler(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    ).save_pretrained(folder)
    forget_origin(folder)
