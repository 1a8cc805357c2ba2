"""Stable Diffusion 3 and 3.5: three text encoders, `SD3Transformer2DModel`, rectified flow."""

from collections.abc import Iterator, Sequence
from functools import cached_property
from types import SimpleNamespace
from typing import Any, ClassVar

import torch
from diffusers.pipelines.stable_diffusion_3.pipeline_stable_diffusion_3 import calculate_shift
from torch import Tensor

from fewstep.backbones.configurations import Configurations, must_be
from fewstep.backbones.pipeline import CLIP_TOKENIZERS, T5_TOKENIZERS, DiffusersBackbone
from fewstep.backbones.schedulers import FLOW_MATCH, FLOW_SOLVERS, flow_times
from fewstep.core.hardware import device
from fewstep.diffusion.denoiser import Conditions

CLIP_AND_T5_LENGTH = 77 + 256


class StableDiffusion3(DiffusersBackbone):
    """See `protocol.Backbone`.

    Conditions: `text [B, L, D]` of all encoders; `pooled [B, P]` of the first two.
    """

    pipeline_class = "StableDiffusion3Pipeline"
    net_part = "transformer"
    net_class = "SD3Transformer2DModel"
    text_classes: ClassVar = {
        "text_encoder": ("CLIPTextModelWithProjection",),
        "text_encoder_2": ("CLIPTextModelWithProjection",),
        "text_encoder_3": ("T5EncoderModel",),
        "tokenizer": CLIP_TOKENIZERS,
        "tokenizer_2": CLIP_TOKENIZERS,
        "tokenizer_3": T5_TOKENIZERS,
    }
    optional_parts: ClassVar = {"text_encoder_3": ("tokenizer_3",)}
    schedulers = (FLOW_MATCH, *FLOW_SOLVERS)
    dynamic_shifting = True
    vae_values: ClassVar = {}
    single_file_parts: ClassVar = {
        "transformer": "model.diffusion_model.",
        "vae": "first_stage_model.",
        "text_encoder": "text_encoders.clip_l.",
        "text_encoder_2": "text_encoders.clip_g.",
        "text_encoder_3": "text_encoders.t5xxl.",
    }
    lora_targets = (
        *DiffusersBackbone.lora_targets,
        *("proj_in", "proj_out", "proj", "linear", "linear_1", "linear_2", "ff.net.0.proj", "ff.net.2"),
    )

    @classmethod
    def fit(cls, configurations: Configurations) -> Iterator[str]:
        yield from super().fit(configurations)
        number = configurations.number
        widths = [number(part, "projection_dim") for part in ("text_encoder", "text_encoder_2")]
        pooled = sum(width for width in widths if width) if None not in widths else None
        rules = (
            ("pooled_projection_dim", pooled, "must be the sum of the CLIP encoders' projection_dim"),
            ("joint_attention_dim", number("text_encoder_3", "d_model"), "must be T5's d_model"),
        )
        for key, value, why in rules:
            yield from must_be(configurations, "transformer", key, value, why)

    @cached_property
    def prompter(self) -> Any:
        """Without T5 the stock pipeline uses zeros, whose width it reads from its transformer's config."""
        pipeline = super().prompter
        if pipeline.text_encoder_3 is None:
            pipeline.transformer = SimpleNamespace(config=self.net.config)
        return pipeline

    def stock_prompt(self, conditions: Conditions) -> dict[str, Any]:
        return {**super().stock_prompt(conditions), "pooled_prompt_embeds": conditions["pooled"]}

    def encode_prompts(self, prompts: Sequence[str]) -> Conditions:
        text, _, pooled, _ = self.prompter.encode_prompt(
            list(prompts), None, None, device=device(), do_classifier_free_guidance=False
        )
        return {"text": text.float(), "pooled": pooled.float()}

    def times(self, steps: int) -> list[float]:
        """Times with the spacing of the teacher's scheduler, which is denser at high noise levels."""
        scheduler = self.parts["scheduler"]()
        if not scheduler.config.get("use_dynamic_shifting"):
            return flow_times(scheduler, steps)
        tokens = (self.latent_shape[1] // self.net.config.patch_size) ** 2
        stock = {"base_image_seq_len": 256, "max_image_seq_len": 4096, "base_shift": 0.5, "max_shift": 1.16}
        shift = calculate_shift(tokens, *(scheduler.config.get(key, usual) for key, usual in stock.items()))
        return flow_times(scheduler, steps, shift)

    def example_conditions(self, net: Any, batch: int, length: int | None = None) -> Conditions:
        config = net.config
        return {
            "text": torch.zeros(batch, length or CLIP_AND_T5_LENGTH, config.joint_attention_dim),
            "pooled": torch.zeros(batch, config.pooled_projection_dim),
        }

    def call(self, net: Any, x: Tensor, time: Tensor, conditions: Conditions) -> Tensor:
        raw: Tensor = net(x, conditions["text"], conditions["pooled"], time, return_dict=False)[0]
        return raw


Adapter = StableDiffusion3
