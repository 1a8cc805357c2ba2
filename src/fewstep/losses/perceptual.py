"""Perceptual distance of images, on the feature maps of any feature network."""

import torch
from torch import Tensor
from torch.nn.functional import normalize

from fewstep.features.network import FeatureNetwork


def perceptual_distance(network: FeatureNetwork, x: Tensor, y: Tensor) -> Tensor:
    """Mean over positions and images of the squared difference of unit feature vectors.

    With the network's channel weights w this is LPIPS (Zhang et al. 2018, eq. 1), the sum over maps of
    `w . d^2`. Without them, w = 1 and the mean over maps is taken; range [0, 4]. x, y: `[B, 3, H, W]` in
    [-1, 1]. Differentiable in x; y is the target.
    """
    with torch.no_grad():
        targets = network.maps(y)
    squares = [
        (normalize(a.float(), dim=1) - normalize(b.float(), dim=1)).square()
        for a, b in zip(network.maps(x), targets, strict=True)
    ]
    weights = network.channel_weights
    if weights is None:
        return torch.stack([each.sum(1).mean() for each in squares]).mean()
    weighted = [w[:, None, None] * each for w, each in zip(weights, squares, strict=True)]
    return torch.stack([each.sum(1).mean() for each in weighted]).sum()
