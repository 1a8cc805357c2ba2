"""FLUX.1 dev and schnell: CLIP and T5 text, `FluxTransformer2DModel`, rectified flow."""

from collections.abc import Iterator, Sequence
from typing import Any, ClassVar

import numpy as np
import torch
from diffusers import FluxPipeline
from diffusers.pipelines.flux.pipeline_flux import calculate_shift
from torch import Tensor

from fewstep.backbones.configurations import Configurations, channels, must_be, square
from fewstep.backbones.pipeline import CLIP_TOKENIZERS, T5_TOKENIZERS, DiffusersBackbone
from fewstep.backbones.schedulers import FLOW_MATCH
from fewstep.core.hardware import device
from fewstep.diffusion.denoiser import Conditions

DISTILLED_GUIDANCE = 3.5
"""Guidance scale that dev receives as an input of the network: its stock pipeline's default."""


class Flux(DiffusersBackbone):
    """See `protocol.Backbone`.

    Conditions: `text [B, L, D]` of T5; `pooled [B, P]` of CLIP. Latents have the autoencoder's layout; the
    network receives them packed, one token per 2 x 2 patch. Their size follows from the image size that the
    autoencoder was trained on. `sampling.guidance` is classifier-free guidance, with two evaluations; dev
    needs none.
    """

    pipeline_class = "FluxPipeline"
    net_part = "transformer"
    net_class = "FluxTransformer2DModel"
    tokenizer_part = "tokenizer_2"
    text_classes: ClassVar = {
        "text_encoder": ("CLIPTextModel",),
        "text_encoder_2": ("T5EncoderModel",),
        "tokenizer": CLIP_TOKENIZERS,
        "tokenizer_2": T5_TOKENIZERS,
    }
    schedulers = (FLOW_MATCH,)
    dynamic_shifting = True
    vae_values: ClassVar = {}
    single_file_parts: ClassVar = {
        "transformer": "model.diffusion_model.",
        "vae": "vae.",
        "text_encoder": "text_encoders.clip_l.",
        "text_encoder_2": "text_encoders.t5xxl.",
    }
    lora_targets = (
        *DiffusersBackbone.lora_targets,
        *("add_q_proj", "add_k_proj", "add_v_proj", "to_add_out"),
    )

    @classmethod
    def fit(cls, configurations: Configurations) -> Iterator[str]:
        yield from square(configurations, "vae")
        yield from channels(configurations, "transformer", tokens=4)
        number = configurations.number
        rules = (
            ("pooled_projection_dim", number("text_encoder", "hidden_size"), "must be CLIP's hidden_size"),
            ("joint_attention_dim", number("text_encoder_2", "d_model"), "must be T5's d_model"),
        )
        for key, value, why in rules:
            yield from must_be(configurations, "transformer", key, value, why)

    def stock_latents(self, pipeline: Any, noise: Tensor, steps: int, **call: Any) -> Tensor:
        packed = FluxPipeline._pack_latents(noise, *noise.shape)
        drawn = super().stock_latents(pipeline, packed, steps, **call)
        unpacked: Tensor = FluxPipeline._unpack_latents(drawn, *noise.shape[2:], 1)
        return unpacked

    def stock_prompt(self, conditions: Conditions) -> dict[str, Any]:
        return {**super().stock_prompt(conditions), "pooled_prompt_embeds": conditions["pooled"]}

    @property
    def latent_shape(self) -> tuple[int, ...]:
        config = self.vae.config
        side = config.sample_size // 2 ** (len(config.block_out_channels) - 1)
        return config.latent_channels, side, side

    @property
    def prompt_length(self) -> int:
        """Tokens that T5 reads: 512 for dev, 256 for schnell."""
        return 512 if self.net.config.guidance_embeds else 256

    @property
    def stock_call(self) -> dict[str, Any]:
        side = self.vae.config.sample_size
        length = {"max_sequence_length": self.prompt_length}
        return {"guidance_scale": DISTILLED_GUIDANCE, "height": side, "width": side} | length

    def encode_prompts(self, prompts: Sequence[str]) -> Conditions:
        text, pooled, _ = self.prompter.encode_prompt(
            list(prompts), None, device=device(), max_sequence_length=self.prompt_length
        )
        return {"text": text.float(), "pooled": pooled.float()}

    def times(self, steps: int) -> list[float]:
        """Times with the spacing of the teacher's scheduler, shifted according to the number of tokens."""
        scheduler = self.parts["scheduler"]()
        names = ("base_image_seq_len", "max_image_seq_len", "base_shift", "max_shift")
        shift = calculate_shift((self.latent_shape[1] // 2) ** 2, *(scheduler.config[name] for name in names))
        scheduler.set_timesteps(sigmas=np.linspace(1.0, 1 / steps, steps), mu=shift)
        return [1.0, *scheduler.sigmas[1:].double().tolist()]

    def call(self, net: Any, x: Tensor, time: Tensor, conditions: Conditions) -> Tensor:
        high, wide = x.shape[2:]
        text = conditions["text"]
        raw = net(
            hidden_states=FluxPipeline._pack_latents(x, *x.shape),
            timestep=time / 1000,
            guidance=torch.full_like(time, DISTILLED_GUIDANCE) if net.config.guidance_embeds else None,
            pooled_projections=conditions["pooled"],
            encoder_hidden_states=text,
            txt_ids=text.new_zeros(text.shape[1], 3),
            img_ids=FluxPipeline._prepare_latent_image_ids(0, high // 2, wide // 2, x.device, x.dtype),
            return_dict=False,
        )[0]
        output: Tensor = FluxPipeline._unpack_latents(raw, high, wide, vae_scale_factor=1)
        return output


Adapter = Flux
