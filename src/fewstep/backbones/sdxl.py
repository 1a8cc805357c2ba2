"""Stable Diffusion XL: two text encoders, a pooled embedding and the picture's size as conditions."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from fewstep.backbones.pipeline import CLIP_LENGTH, DiffusersBackbone, embedded_guidance
from fewstep.diffusion.denoiser import Conditions, Network
from fewstep.hardware import device

VAE_FACTOR = 8


class StableDiffusionXL(DiffusersBackbone):
    """See `base.Backbone`.

    Conditions: `text [B, L, D]`, both encoders' hidden states side by side; `pooled [B, P]`, of the second
    encoder; `time_ids [B, 6]`, original size, crop corner and target size in pixels (Podell et al. 2023,
    section 2.2): the full picture, uncropped.
    """

    pipeline_class = "StableDiffusionXLPipeline"

    def encode_prompts(self, prompts: Sequence[str]) -> Conditions:
        text, _, pooled, _ = self.prompter.encode_prompt(
            list(prompts), device=device(), do_classifier_free_guidance=False
        )
        side = float(self.net.config.sample_size * VAE_FACTOR)
        time_ids = torch.tensor([[side, side, 0.0, 0.0, side, side]], device=text.device)
        return {"text": text.float(), "pooled": pooled.float(), "time_ids": time_ids.expand(len(text), -1)}

    def unconditional(self, negative_prompt: str = "") -> Conditions:
        """Zeros for the empty prompt, as SDXL was trained; its size conditions stay."""
        found = self.encode_prompts([negative_prompt])
        if negative_prompt:
            return found
        return found | {name: torch.zeros_like(found[name]) for name in ("text", "pooled")}

    def example_conditions(self, net: Any, batch: int, length: int | None = None) -> Conditions:
        config = net.config
        pooled = config.projection_class_embeddings_input_dim - 6 * config.addition_time_embed_dim
        return {
            "text": torch.zeros(batch, length or CLIP_LENGTH, config.cross_attention_dim),
            "pooled": torch.zeros(batch, pooled),
            "time_ids": torch.zeros(batch, 6),
        }

    def network(self, net: nn.Module) -> Network:
        def run(x: Tensor, time: Tensor, conditions: Conditions) -> Tensor:
            added = {"text_embeds": conditions["pooled"], "time_ids": conditions["time_ids"]}
            raw: Tensor = net(
                x,
                time,
                conditions["text"],
                timestep_cond=embedded_guidance(net, conditions),
                added_cond_kwargs=added,
                return_dict=False,
            )[0]
            return raw

        return run


Adapter = StableDiffusionXL
