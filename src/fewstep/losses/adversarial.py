"""Adversarial losses of a discriminator's logits, each a pair: the discriminator's and the generator's.

Logits have any shape, one or several per sample; each loss is the mean over all of them.
"""

from collections.abc import Callable
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import relu, softplus

Kind = Literal["lsgan", "hinge", "wgan", "non_saturating", "bce"]
"""The losses by name."""


class AdversarialLoss(NamedTuple):
    """discriminator: loss of its logits on (real, drawn) samples. generator: of the logits on drawn ones."""

    discriminator: Callable[[Tensor, Tensor], Tensor]
    generator: Callable[[Tensor], Tensor]


LOSSES: dict[str, AdversarialLoss] = {
    # Mao et al. 2017, eq. 9: targets 1 for real, 0 for drawn samples.
    "lsgan": AdversarialLoss(
        lambda real, drawn: 0.5 * ((real - 1).square().mean() + drawn.square().mean()),
        lambda drawn: 0.5 * (drawn - 1).square().mean(),
    ),
    # Lim & Ye 2017, eq. 15.
    "hinge": AdversarialLoss(
        lambda real, drawn: relu(1 - real).mean() + relu(1 + drawn).mean(),
        lambda drawn: -drawn.mean(),
    ),
    # Arjovsky et al. 2017, eq. 3; needs weights clipped to a small range, see `clip_critic`.
    "wgan": AdversarialLoss(
        lambda real, drawn: drawn.mean() - real.mean(),
        lambda drawn: -drawn.mean(),
    ),
    # Goodfellow et al. 2014, section 3: the generator maximises log D instead of minimising log(1 - D).
    "non_saturating": AdversarialLoss(
        lambda real, drawn: softplus(-real).mean() + softplus(drawn).mean(),
        lambda drawn: softplus(-drawn).mean(),
    ),
    # Goodfellow et al. 2014, eq. 1: the minimax game of the binary cross-entropy.
    "bce": AdversarialLoss(
        lambda real, drawn: softplus(-real).mean() + softplus(drawn).mean(),
        lambda drawn: -softplus(drawn).mean(),
    ),
}
WGAN_BOUND = 0.01
"""Largest absolute weight of a WGAN's discriminator (Arjovsky et al. 2017, algorithm 1)."""


@torch.no_grad()
def clip_critic(kind: str, discriminator: nn.Module) -> None:
    """Clip a WGAN's weights in place after its update; the other losses need no bound."""
    if kind == "wgan":
        for weight in discriminator.parameters():
            weight.clamp_(-WGAN_BOUND, WGAN_BOUND)
