"""Stable Diffusion XL: two text encoders, a pooled embedding and the image's size as conditions."""

from collections.abc import Iterator, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from fewstep.backbones.configurations import Configurations, fault, must_be
from fewstep.backbones.pipeline import CLIP_LENGTH, CLIP_TOKENIZERS, DiffusersBackbone
from fewstep.core.hardware import device
from fewstep.diffusion.denoiser import Conditions

VAE_FACTOR = 8
SIZE_IDS = 6
"""Numbers in `time_ids`."""


class StableDiffusionXL(DiffusersBackbone):
    """See `protocol.Backbone`.

    Conditions: `text [B, L, D]`, both encoders' hidden states side by side; `pooled [B, P]`, of the second
    encoder; `time_ids [B, 6]`, original size, crop corner and target size in pixels (Podell et al. 2023,
    section 2.2): the full image, uncropped.
    """

    pipeline_class = "StableDiffusionXLPipeline"
    text_classes: ClassVar = {
        "text_encoder": ("CLIPTextModel",),
        "text_encoder_2": ("CLIPTextModelWithProjection",),
        "tokenizer": CLIP_TOKENIZERS,
        "tokenizer_2": CLIP_TOKENIZERS,
    }
    net_values: ClassVar = {"addition_embed_type": ("text_time",)}
    single_file_parts: ClassVar = {
        "unet": "model.diffusion_model.",
        "vae": "first_stage_model.",
        "text_encoder": "conditioner.embedders.0.",
        "text_encoder_2": "conditioner.embedders.1.",
    }

    @classmethod
    def fit(cls, configurations: Configurations) -> Iterator[str]:
        yield from super().fit(configurations)
        number = configurations.number
        widths = [number(part, "hidden_size") for part in ("text_encoder", "text_encoder_2")]
        pooled, times = number("text_encoder_2", "projection_dim"), number("unet", "addition_time_embed_dim")
        text = sum(width for width in widths if width) if None not in widths else None
        wanted = pooled + SIZE_IDS * times if pooled and times else None
        rules = (
            ("cross_attention_dim", text, "must be the sum of the text encoders' hidden_size"),
            (
                "projection_class_embeddings_input_dim",
                wanted,
                "must hold the pooled text and six numbers of size and crop (SDXL's refiner has five, with "
                "an aesthetic score)",
            ),
        )
        for key, value, why in rules:
            yield from must_be(configurations, "unet", key, value, why)
        levels = configurations.of("vae").get("block_out_channels")
        if isinstance(levels, list) and 2 ** (len(levels) - 1) != VAE_FACTOR:
            why = f"expected four levels, which make an image {VAE_FACTOR} times its latent"
            yield fault(configurations.file("vae"), "block_out_channels", levels, why)

    def encode_prompts(self, prompts: Sequence[str]) -> Conditions:
        text, _, pooled, _ = self.prompter.encode_prompt(
            list(prompts), device=device(), do_classifier_free_guidance=False
        )
        side = float(self.net.config.sample_size * VAE_FACTOR)
        time_ids = torch.tensor([[side, side, 0.0, 0.0, side, side]], device=text.device)
        return {"text": text.float(), "pooled": pooled.float(), "time_ids": time_ids.expand(len(text), -1)}

    def unconditional(self, negative_prompt: str = "") -> Conditions:
        """Zeros for the empty prompt, as in SDXL's training, unless its pipeline's index disables them.

        The size conditions are kept.
        """
        conditions = self.encode_prompts([negative_prompt])
        if negative_prompt or self.settings.get("force_zeros_for_empty_prompt") is False:
            return conditions
        return conditions | {name: torch.zeros_like(conditions[name]) for name in ("text", "pooled")}

    def stock_prompt(self, conditions: Conditions) -> dict[str, Any]:
        return {**super().stock_prompt(conditions), "pooled_prompt_embeds": conditions["pooled"]}

    def example_conditions(self, net: Any, batch: int, length: int | None = None) -> Conditions:
        config = net.config
        pooled = config.projection_class_embeddings_input_dim - 6 * config.addition_time_embed_dim
        return {
            "text": torch.zeros(batch, length or CLIP_LENGTH, config.cross_attention_dim),
            "pooled": torch.zeros(batch, pooled),
            "time_ids": torch.zeros(batch, 6),
        }

    def call(self, net: Any, x: Tensor, time: Tensor, conditions: Conditions) -> Tensor:
        added = {"text_embeds": conditions["pooled"], "time_ids": conditions["time_ids"]}
        raw: Tensor = net(x, time, conditions["text"], added_cond_kwargs=added, return_dict=False)[0]
        return raw


Adapter = StableDiffusionXL
