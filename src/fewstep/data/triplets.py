"""Teacher triplets (text, noise, image): sharded, the noise kept as its key.

A shard is a folder: `triplets.safetensors` with `latents [n, C, H, W]`, `prompt [n]` (row of the prompt
table) and `condition.<name> [prompts, ...]` (each distinct prompt encoded once); `prompts.json`; and a
manifest whose facts name the solver, the first index and the noise key.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor

from fewstep.artifacts.manifest import Manifest
from fewstep.data.stream import Stream
from fewstep.diffusion.denoiser import Conditions
from fewstep.keyed import Key

FILE = "triplets.safetensors"
CONDITION = "condition."


@dataclass(frozen=True)
class Triplet:
    """index: of its noise. latent: the teacher's end point `[C, H, W]`. condition: its encoded prompt."""

    index: int
    latent: Tensor
    condition: dict[str, Tensor]


@dataclass(frozen=True)
class TripletBatch:
    """x_0, eps: `[B, C, H, W]`; conditions: `[B, ...]` each."""

    x_0: Tensor
    eps: Tensor
    conditions: Conditions


def noise_key(seed: int) -> Key:
    """The stream from which triplet i's noise is drawn, for the triplets and for whoever rebuilds it."""
    return Key(seed, "triplets/noise")


def noise_of(key: Key, indices: Sequence[int], shape: Sequence[int]) -> Tensor:
    """The noises of these indices, float32 `[B, *shape]`."""
    return torch.from_numpy(key.normal(indices, shape))


def open_triplets(folders: Sequence[Path], order: Key) -> Stream[Triplet]:
    """Triplets of these shards in keyed order."""
    manifests = [Manifest.open(folder, "triplets") for folder in folders]
    counts = [manifest.facts["count"] for manifest in manifests]
    firsts = [manifest.facts["first"] for manifest in manifests]
    return Stream(counts, partial(_load, list(folders), firsts), order)


def _load(folders: Sequence[Path], firsts: Sequence[int], shard: int) -> list[Triplet]:
    tensors = load_file(folders[shard] / FILE)
    table = {
        name.removeprefix(CONDITION): value for name, value in tensors.items() if name.startswith(CONDITION)
    }
    return [
        Triplet(firsts[shard] + row, latent, {name: value[prompt] for name, value in table.items()})
        for row, (latent, prompt) in enumerate(
            zip(tensors["latents"], tensors["prompt"].tolist(), strict=True)
        )
    ]


def collate(triplets: Sequence[Triplet], noise: Key, device: torch.device) -> TripletBatch:
    """Stack triplets and rebuild their noises."""
    x_0 = torch.stack([triplet.latent for triplet in triplets])
    eps = noise_of(noise, [triplet.index for triplet in triplets], x_0.shape[1:])
    conditions = {
        name: torch.stack([triplet.condition[name] for triplet in triplets]).to(device)
        for name in triplets[0].condition
    }
    return TripletBatch(x_0.to(device), eps.to(device), conditions)
