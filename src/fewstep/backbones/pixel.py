"""Pixel-space diffusion: `UNet2DModel` without autoencoder or text, unconditional or class-conditional.

The classic case of progressive distillation (Salimans & Ho 2022). The prompts of a
class-conditional model are class indices.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from fewstep.backbones.configurations import Configurations, fault, must_be, square
from fewstep.backbones.pipeline import DiffusersBackbone
from fewstep.core.errors import UserError
from fewstep.core.hardware import device
from fewstep.diffusion.denoiser import Conditions


class Pixel(DiffusersBackbone):
    """See `protocol.Backbone`. Conditions: `label [B]`, the class index; none for unconditional models.

    Latents are the images themselves, or their mean over colours for a one-channel network.
    """

    pipeline_class = "DDPMPipeline"
    net_class = "UNet2DModel"
    prompt_length = 0
    vae_class = ""

    @classmethod
    def fit(cls, configurations: Configurations) -> Iterator[str]:
        yield from square(configurations, "unet")
        count = configurations.number("unet", "in_channels", 3)
        if count not in (1, 3):
            yield fault(
                configurations.file("unet"), "in_channels", count, "expected 3 colours, or 1 for gray"
            )
        if configurations.number("unet", "out_channels") != 2 * (count or 0):  # twice: a learned variance
            yield from must_be(configurations, "unet", "out_channels", count, "must be in_channels")

    def stock_latents(self, pipeline: Any, noise: Tensor, steps: int, **call: Any) -> Tensor:
        """Sample as DDIMPipeline does, which takes neither initial noise nor classes from its caller."""
        scheduler, x = pipeline.scheduler, noise
        scheduler.set_timesteps(steps)
        for t in scheduler.timesteps:
            raw = pipeline.unet(x, t, **call).sample[:, : x.shape[1]]
            x = scheduler.step(raw, t, x).prev_sample
        return x

    def stock_prompt(self, conditions: Conditions) -> dict[str, Any]:
        return {"class_labels": conditions["label"].long()} if conditions else {}

    def encode_prompts(self, prompts: Sequence[str]) -> Conditions:
        classes = self.net.config.num_class_embeds
        if classes is None:
            return {}
        for prompt in prompts:
            if not prompt.isdecimal() or int(prompt) >= classes:
                raise UserError(
                    f"prompt {prompt!r}: this model's prompts are its classes, 0 to {classes - 1}"
                )
        return {"label": torch.tensor([float(prompt) for prompt in prompts], device=device())}

    def example_conditions(self, net: Any, batch: int, length: int | None = None) -> Conditions:
        return {} if net.config.num_class_embeds is None else {"label": torch.zeros(batch)}

    def encode(self, images: Tensor) -> Tensor:
        return images.mean(1, keepdim=True) if self.latent_shape[0] == 1 else images

    def decode(self, latents: Tensor, decoder: nn.Module | None = None) -> Tensor:
        return latents.expand(-1, 3, -1, -1)

    def decoder(self) -> nn.Module:
        return nn.Identity()

    def call(self, net: Any, x: Tensor, time: Tensor, conditions: Conditions) -> Tensor:
        label = conditions["label"].long() if "label" in conditions else None
        raw: Tensor = net(x, time, label, return_dict=False)[0]
        return raw[:, : x.shape[1]]


Adapter = Pixel
