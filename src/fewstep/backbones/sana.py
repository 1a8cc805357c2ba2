"""Sana: Gemma text with its mask, `SanaTransformer2DModel`, rectified flow on latents of 32 x compression."""

from collections.abc import Iterator, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from fewstep.backbones.configurations import Configurations, must_be
from fewstep.backbones.pipeline import ANY_TOKENIZER, DiffusersBackbone
from fewstep.backbones.schedulers import FLOW_MATCH, FLOW_SOLVERS, flow_times
from fewstep.core.hardware import device, full_precision
from fewstep.diffusion.denoiser import Conditions

VAE_FACTOR = 32


class Sana(DiffusersBackbone):
    """See `protocol.Backbone`.

    Conditions: `text [B, L, D]` and its `mask [B, L]`. Prompts are encoded without the rewriting
    instruction that the stock pipeline prepends. They are converted to lower case, as in the stock pipeline.
    """

    pipeline_class = "SanaPipeline"
    net_part = "transformer"
    net_class = "SanaTransformer2DModel"
    prompt_length = 300
    learned_variance = True
    vae_class = "AutoencoderDC"
    vae_values: ClassVar = {}
    text_classes: ClassVar = {
        "text_encoder": ("Gemma2Model",),
        "tokenizer": ("GemmaTokenizer", *ANY_TOKENIZER),
    }
    schedulers = (FLOW_MATCH, *FLOW_SOLVERS)

    @classmethod
    def fit(cls, configurations: Configurations) -> Iterator[str]:
        yield from super().fit(configurations)
        width = configurations.number("text_encoder", "hidden_size")
        why = "must be Gemma's hidden_size"
        yield from must_be(configurations, "transformer", "caption_channels", width, why)

    @property
    def stock_call(self) -> dict[str, Any]:
        side = self.net.config.sample_size * VAE_FACTOR
        plain = {"clean_caption": False, "complex_human_instruction": None}
        return {**super().stock_call, "height": side, "width": side, **plain}

    def stock_latents(self, pipeline: Any, noise: Tensor, steps: int, **call: Any) -> Tensor:
        return super().stock_latents(pipeline, noise, steps, use_resolution_binning=False, **call)

    def stock_prompt(self, conditions: Conditions) -> dict[str, Any]:
        return {**super().stock_prompt(conditions), "prompt_attention_mask": conditions["mask"]}

    def encode_prompts(self, prompts: Sequence[str]) -> Conditions:
        text, mask, _, _ = self.prompter.encode_prompt(
            list(prompts), False, device=device(), max_sequence_length=self.prompt_length
        )
        return {"text": text.float(), "mask": mask.float()}

    def example_conditions(self, net: Any, batch: int, length: int | None = None) -> Conditions:
        length = length or self.prompt_length
        text = torch.zeros(batch, length, net.config.caption_channels)
        return {"text": text, "mask": torch.zeros(batch, length)}

    def times(self, steps: int) -> list[float]:
        """Times with the spacing of the teacher's scheduler, except that the first is pure noise."""
        return flow_times(self.parts["scheduler"](), steps)

    def encode(self, images: Tensor) -> Tensor:
        with full_precision(self.vae.config.get("force_upcast", False)):
            latents: Tensor = self.vae.encode(images).latent
        return latents * self.vae.config.scaling_factor

    def call(self, net: Any, x: Tensor, time: Tensor, conditions: Conditions) -> Tensor:
        raw: Tensor = net(
            x,
            encoder_hidden_states=conditions["text"],
            encoder_attention_mask=conditions["mask"],
            timestep=time * net.config.timestep_scale,
            return_dict=False,
        )[0]
        return raw[:, : x.shape[1]]


Adapter = Sana
