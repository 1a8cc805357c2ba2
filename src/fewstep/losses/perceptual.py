"""Perceptual distance of images, on the feature maps of any feature network."""

import torch
from torch import Tensor
from torch.nn.functional import normalize

from fewstep.features.network import FeatureNetwork


def perceptual_distance(network: FeatureNetwork, x: Tensor, y: Tensor) -> Tensor:
    """Mean over maps, positions and images of the squared difference of unit feature vectors.

    LPIPS (Zhang et al. 2018, eq. 1) with uniform weights. x, y: `[B, 3, H, W]` in [-1, 1]. Range [0, 4];
    differentiable in x; y is the target.
    """
    with torch.no_grad():
        targets = network.maps(y)
    distances = [
        (normalize(a.float(), dim=1) - normalize(b.float(), dim=1)).square().sum(1).mean()
        for a, b in zip(network.maps(x), targets, strict=True)
    ]
    return torch.stack(distances).mean()
