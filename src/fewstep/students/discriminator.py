"""Discriminators on the features of a denoising network, as in DMD2 and Flash Diffusion."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from fewstep.core.keyed import Key
from fewstep.diffusion.denoiser import Conditions, Denoiser, from_estimate
from fewstep.training.taps import tapped

MIDDLE = "mid_block"
"""A U-Net's block of lowest resolution."""
WIDTH, GROUPS = 64, 4
"""Channels of a head, and groups of its normalisation."""


@dataclass(frozen=True)
class Features:
    """Feature maps of a noised sample: those of a U-Net's middle block, else the network's output.

    net: the network that `denoiser` evaluates. Flash Diffusion uses a transformer's output as well.
    """

    net: nn.Module
    denoiser: Denoiser

    def __call__(self, x_t: Tensor, t: Tensor, conditions: Conditions) -> Tensor:
        """`[B, C, h, w]`, of x_t `[B, ...]` on the denoiser's path at t `[B]`."""
        if getattr(self.net, MIDDLE, None) is not None:
            with tapped(self.net, [MIDDLE]) as features:
                self.denoiser(x_t, t, conditions)
            return features[MIDDLE].float()
        estimate = self.denoiser(x_t, t, conditions)
        return from_estimate(estimate, *self.denoiser.own_alpha_sigma(t), self.denoiser.prediction).float()


def head_on(features: Features, x_0: Tensor, conditions: Conditions, key: Key) -> nn.Sequential:
    """A convolutional head that maps features to one logit per position, `[B, 1, h, w]`.

    x_0: one clean sample `[1, ...]` with its conditions; the head takes as many channels as its features
    have. key: of the initial weights.
    """
    with torch.no_grad():
        channels = features(x_0, torch.full((1,), 0.5, device=x_0.device), conditions).shape[1]
    return new_head(channels, key)


def new_head(channels: int, key: Key) -> nn.Sequential:
    """A head on maps `[B, channels, h, w]`, its weights drawn from `key`."""
    torch.manual_seed(key.seed32(0))
    return nn.Sequential(
        nn.Conv2d(channels, WIDTH, 3, padding=1),
        nn.SiLU(),
        nn.Conv2d(WIDTH, WIDTH, 3, padding=1),
        nn.GroupNorm(GROUPS, WIDTH),
        nn.SiLU(),
        nn.Conv2d(WIDTH, 1, 1),
    )
