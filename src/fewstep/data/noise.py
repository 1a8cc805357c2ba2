"""Noise kept as its key: triplet i's, and that of whoever draws as it was drawn."""

from collections.abc import Sequence

import torch
from torch import Tensor

from fewstep.core.keyed import Key
from fewstep.diffusion.solvers import Fresh


def noise_key(seed: int) -> Key:
    """The stream from which triplet i's noise is drawn, for the triplets and for whoever rebuilds it."""
    return Key(seed, "triplets/noise")


def fresh_noise(key: Key, indices: Sequence[int], shape: Sequence[int], device: torch.device) -> Fresh:
    """Noise of further steps (solver `renoise`), keyed by the stream, the step and each image's index."""

    def draw(step: int) -> Tensor:
        return noise_of(Key(key.seed, f"{key.stream}/step {step}"), indices, shape).to(device)

    return draw


def noise_of(key: Key, indices: Sequence[int], shape: Sequence[int]) -> Tensor:
    """The noises of these indices, float32 `[B, *shape]`."""
    return torch.from_numpy(key.normal(indices, shape))
