"""Autoencoder of the small teacher: sharp reconstructions from latents of about unit variance."""

from typing import Any

import torch
from diffusers import AutoencoderKL
from torch import Tensor
from torch.nn.functional import l1_loss, mse_loss

from fewstep.config.teacher import VaeConfig
from fewstep.core.hardware import autocast, device, upload
from fewstep.core.keyed import Key
from fewstep.data.pixels import image_batch
from fewstep.data.shards import ImageRecord
from fewstep.data.stream import Stream
from fewstep.training.method import Group, Method, Rows

PREVIEWED = 8


class Vae(Method):
    """L1 on pixels and their finite differences, L2 on pixels, and a KL term that only bounds the latents."""

    def __init__(self, vae: AutoencoderKL, config: VaeConfig, images: Stream[ImageRecord], seed: int) -> None:
        self.config, self.images, self.noise = config, images, Key(seed, "vae/noise")
        self.vae: Any = vae
        self.training = config.training
        self.groups = {"vae": Group({"vae": vae}, config.training)}

    def batch(self, rows: Rows) -> tuple[Tensor, Tensor]:
        """Images `[B, 3, H, W]` in [-1, 1] and the noise that samples their latents."""
        x = image_batch(self.images.rows(rows.positions))
        side = x.shape[-1] >> (len(self.config.channels) - 1)
        noise = self.noise.normal(rows.positions, (self.config.latent_channels, side, side))
        return upload(x), upload(torch.from_numpy(noise))

    def preview(self) -> Tensor:
        """Images above their reconstructions."""
        x = image_batch(self.images.rows(range(PREVIEWED))).to(device())
        return torch.cat([x, self.vae.decode(self.vae.encode(x).latent_dist.mean).sample.float()])

    def losses(self, group: str, batch: tuple[Tensor, Tensor], step: int) -> dict[str, Tensor]:
        x, noise = batch
        posterior = self.vae.encode(x).latent_dist
        y = self.vae.decode((posterior.mean + posterior.std * noise).to(x.dtype)).sample.float()
        return {
            "pixels": l1_loss(y, x),
            "squares": self.config.square_weight * mse_loss(y, x),
            "edges": self.config.edge_weight * sum(l1_loss(y.diff(dim=d), x.diff(dim=d)) for d in (2, 3)),
            "kl": self.config.kl_weight * posterior.kl().float().mean() / noise[0].numel(),
        }


@torch.no_grad()
def unit_variance(vae: AutoencoderKL, images: Stream[ImageRecord], count: int = 2048) -> None:
    """Set `scaling_factor` so that latents have about unit variance (Rombach et al. 2022, appendix G)."""
    x = image_batch(images.rows(range(min(count, images.total)))).to(device())
    with autocast():
        latents = torch.cat([vae.encode(chunk).latent_dist.mean.float() for chunk in torch.split(x, 256)])
    vae.register_to_config(scaling_factor=round(1 / latents.std().item(), 6))
