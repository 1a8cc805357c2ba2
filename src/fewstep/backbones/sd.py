"""Stable Diffusion 1.x and 2.x: CLIP text, `UNet2DConditionModel`; epsilon- or v-prediction."""

from collections.abc import Iterator, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from fewstep.backbones.configurations import Configurations, must_be
from fewstep.backbones.pipeline import CLIP_LENGTH, CLIP_TOKENIZERS, DiffusersBackbone
from fewstep.core.hardware import device
from fewstep.diffusion.denoiser import Conditions


class StableDiffusion(DiffusersBackbone):
    """See `protocol.Backbone`. Conditions: `text [B, L, D]`, the text encoder's last hidden state."""

    pipeline_class = "StableDiffusionPipeline"
    pipeline_options: ClassVar = {"requires_safety_checker": False}
    text_classes: ClassVar = {"text_encoder": ("CLIPTextModel",), "tokenizer": CLIP_TOKENIZERS}
    single_file_parts: ClassVar = {
        "unet": "model.diffusion_model.",
        "vae": "first_stage_model.",
        "text_encoder": "cond_stage_model.",
    }

    @classmethod
    def fit(cls, configurations: Configurations) -> Iterator[str]:
        yield from super().fit(configurations)
        width = configurations.number("text_encoder", "hidden_size")
        why = "must be the text encoder's hidden_size"
        yield from must_be(configurations, "unet", "cross_attention_dim", width, why)

    def encode_prompts(self, prompts: Sequence[str]) -> Conditions:
        text, _ = self.prompter.encode_prompt(list(prompts), device(), 1, False)
        return {"text": text.float()}

    def example_conditions(self, net: Any, batch: int, length: int | None = None) -> Conditions:
        return {"text": torch.zeros(batch, length or CLIP_LENGTH, net.config.cross_attention_dim)}

    def call(self, net: Any, x: Tensor, time: Tensor, conditions: Conditions) -> Tensor:
        raw: Tensor = net(x, time, conditions["text"], return_dict=False)[0]
        return raw


Adapter = StableDiffusion
