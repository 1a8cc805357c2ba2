"""PixArt-alpha and PixArt-Sigma: T5 text with its mask, `PixArtTransformer2DModel`."""

from collections.abc import Iterator, Sequence
from typing import Any, ClassVar, Self

import torch
from torch import Tensor

from fewstep.backbones.configurations import Configurations, must_be
from fewstep.backbones.pipeline import T5_TOKENIZERS, DiffusersBackbone
from fewstep.core.hardware import device
from fewstep.diffusion.denoiser import Conditions

VAE_FACTOR = 8


class PixArt(DiffusersBackbone):
    """See `protocol.Backbone`.

    Conditions: `text [B, L, D]` and its `mask [B, L]`; for 1024-pixel models also `resolution [B, 2]` in
    pixels and `aspect_ratio [B, 1]` (Chen et al. 2023). Captions are used as they are, without the cleaning
    that stock pipelines do by default. A learned variance is dropped.
    """

    pipeline_class = "PixArtAlphaPipeline"
    net_part = "transformer"
    net_class = "PixArtTransformer2DModel"
    lora_targets = (
        *DiffusersBackbone.lora_targets,
        *("proj_in", "proj_out", "proj", "linear", "linear_1", "linear_2", "ff.net.0.proj", "ff.net.2"),
    )
    prompt_length = 120
    learned_variance = True
    text_classes: ClassVar = {"text_encoder": ("T5EncoderModel",), "tokenizer": T5_TOKENIZERS}

    @classmethod
    def fit(cls, configurations: Configurations) -> Iterator[str]:
        yield from super().fit(configurations)
        width = configurations.number("text_encoder", "d_model")
        yield from must_be(configurations, "transformer", "caption_channels", width, "must be T5's d_model")

    @classmethod
    def of(cls, pipeline: str | None) -> type[Self]:
        return PixArtSigma if pipeline == PixArtSigma.pipeline_class else cls  # type: ignore[return-value]

    @property
    def stock_call(self) -> dict[str, Any]:
        return {**super().stock_call, "clean_caption": False}

    def stock_latents(self, pipeline: Any, noise: Tensor, steps: int, **call: Any) -> Tensor:
        # Binning would replace the size that the network receives with one from a list.
        return super().stock_latents(pipeline, noise, steps, use_resolution_binning=False, **call)

    def stock_prompt(self, conditions: Conditions) -> dict[str, Any]:
        return {**super().stock_prompt(conditions), "prompt_attention_mask": conditions["mask"]}

    def encode_prompts(self, prompts: Sequence[str]) -> Conditions:
        text, mask, _, _ = self.prompter.encode_prompt(
            list(prompts),
            do_classifier_free_guidance=False,
            device=device(),
            clean_caption=False,
            max_sequence_length=self.prompt_length,
        )
        conditions = {"text": text.float(), "mask": mask.float()}
        if self.net.use_additional_conditions:
            side = float(self.net.config.sample_size * VAE_FACTOR)
            conditions["resolution"] = torch.full((len(text), 2), side, device=text.device)
            conditions["aspect_ratio"] = torch.ones(len(text), 1, device=text.device)
        return conditions

    def example_conditions(self, net: Any, batch: int, length: int | None = None) -> Conditions:
        length = length or self.prompt_length
        conditions = {
            "text": torch.zeros(batch, length, net.config.caption_channels),
            "mask": torch.zeros(batch, length),
        }
        if net.use_additional_conditions:
            conditions |= {"resolution": torch.zeros(batch, 2), "aspect_ratio": torch.zeros(batch, 1)}
        return conditions

    def call(self, net: Any, x: Tensor, time: Tensor, conditions: Conditions) -> Tensor:
        raw: Tensor = net(
            x,
            encoder_hidden_states=conditions["text"],
            timestep=time,
            added_cond_kwargs={name: conditions.get(name) for name in ("resolution", "aspect_ratio")},
            encoder_attention_mask=conditions["mask"],
            return_dict=False,
        )[0]
        return raw[:, : x.shape[1]]


class PixArtSigma(PixArt):
    """PixArt-alpha with longer prompts and SDXL's autoencoder (Chen et al. 2024); without size conditions."""

    pipeline_class = "PixArtSigmaPipeline"
    prompt_length = 300


Adapter = PixArt
