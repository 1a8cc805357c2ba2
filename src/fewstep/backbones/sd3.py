"""Stable Diffusion 3 and 3.5: three text encoders, `SD3Transformer2DModel`, rectified flow."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from fewstep.backbones.pipeline import DiffusersBackbone
from fewstep.diffusion.denoiser import Conditions, Network
from fewstep.hardware import device

CLIP_AND_T5_LENGTH = 77 + 256


class StableDiffusion3(DiffusersBackbone):
    """See `base.Backbone`. Conditions: `text [B, L, D]` of all encoders; `pooled [B, P]` of the first two."""

    pipeline_class = "StableDiffusion3Pipeline"
    net_part = "transformer"
    net_class = "SD3Transformer2DModel"
    lora_targets = (
        *DiffusersBackbone.lora_targets,
        *("proj_in", "proj_out", "proj", "linear", "linear_1", "linear_2", "ff.net.0.proj", "ff.net.2"),
    )

    def encode_prompts(self, prompts: Sequence[str]) -> Conditions:
        text, _, pooled, _ = self.prompter.encode_prompt(
            list(prompts), None, None, device=device(), do_classifier_free_guidance=False
        )
        return {"text": text.float(), "pooled": pooled.float()}

    def times(self, steps: int) -> list[float]:
        """As the teacher's own scheduler spaces them, which is denser where there is more noise."""
        scheduler = self.parts["scheduler"]()
        scheduler.set_timesteps(steps)
        times: list[float] = scheduler.sigmas.double().tolist()
        return times

    def example_conditions(self, net: Any, batch: int, length: int | None = None) -> Conditions:
        config = net.config
        return {
            "text": torch.zeros(batch, length or CLIP_AND_T5_LENGTH, config.joint_attention_dim),
            "pooled": torch.zeros(batch, config.pooled_projection_dim),
        }

    def network(self, net: nn.Module) -> Network:
        def run(x: Tensor, time: Tensor, conditions: Conditions) -> Tensor:
            raw: Tensor = net(x, conditions["text"], conditions["pooled"], time, return_dict=False)[0]
            return raw

        return run


Adapter = StableDiffusion3
