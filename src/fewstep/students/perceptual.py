"""The feature network of a loss that compares feature maps, and the images whose maps are compared."""

import torch
from torch import Tensor

from fewstep.core.hardware import device
from fewstep.features.network import FeatureNetwork, open_features
from fewstep.losses.perceptual import perceptual_distance
from fewstep.students.config import Decode
from fewstep.students.context import Context

PROBE = 32
"""Side in pixels of the blank image on which a feature network is tested."""


def open_maps(context: Context) -> FeatureNetwork:
    """The chain's feature network, frozen, on the device. Raises UserError where it gives no feature maps.

    It is tested now, because the first step whose loss needs the maps may come after days.
    """
    assert context.features is not None, "a loss of feature maps needs a feature network"
    network = open_features(context.features).to(device())
    map_widths(network)
    return network


@torch.no_grad()
def map_widths(network: FeatureNetwork) -> list[int]:
    """Number of channels of each feature map."""
    return [features.shape[1] for features in network.maps(torch.zeros(1, 3, PROBE, PROBE, device=device()))]


def distance_of_images(x: Tensor, target: Tensor, decode: Decode, features: FeatureNetwork) -> Tensor:
    """Perceptual distance of the images of two latents `[B, C, h, w]`; the target's have no gradient."""
    with torch.no_grad():
        image = decode(target)
    return perceptual_distance(features, decode(x), image)


def centre(x: Tensor, side: int | None) -> Tensor:
    """The middle `side` rows and columns of x `[B, C, H, W]`, or as many as there are."""
    if side is None:
        return x
    top, left = (max(n - side, 0) // 2 for n in x.shape[2:])
    return x[:, :, top : top + side, left : left + side]
