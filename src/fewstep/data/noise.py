"""Keyed noise: it is stored as its key and index, and regenerated."""

from collections.abc import Sequence

import torch
from torch import Tensor

from fewstep.core.hardware import upload
from fewstep.core.keyed import Key
from fewstep.diffusion.solvers import Fresh


def noise_key(seed: int) -> Key:
    """The random stream of the triplets' noise, by which it is drawn and regenerated."""
    return Key(seed, "triplets/noise")


def fresh_noise(key: Key, indices: Sequence[int], shape: Sequence[int], device: torch.device) -> Fresh:
    """Noise of later solver steps (`renoise`), keyed by the stream, the step and each image's index."""

    def draw(step: int) -> Tensor:
        return upload(noise_of(Key(key.seed, f"{key.stream}/step {step}"), indices, shape), device)

    return draw


def noise_of(key: Key, indices: Sequence[int], shape: Sequence[int]) -> Tensor:
    """The noise samples of these indices, float32 `[B, *shape]`."""
    return torch.from_numpy(key.normal(indices, shape))
