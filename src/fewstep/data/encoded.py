"""Real pictures and their captions, encoded: what methods that need real data train on."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor

from fewstep.artifacts.manifest import Manifest
from fewstep.data.stream import Stream
from fewstep.data.triplets import CONDITION
from fewstep.diffusion.denoiser import Conditions
from fewstep.keyed import Key


@dataclass(frozen=True)
class Encoded:
    """One picture: its latent `[C, h, w]` and its caption's conditions, float32."""

    latent: Tensor
    condition: dict[str, Tensor]


def open_encoded(folder: Path, order: Key) -> Stream[Encoded]:
    """Encoded pictures in keyed order. Raises UserError when the artifact is not whole."""
    facts = Manifest.open(folder, "encoded").facts
    return Stream(facts["counts"], partial(_load, folder, facts["files"]), order)


def _load(folder: Path, files: Sequence[str], shard: int) -> list[Encoded]:
    tensors = load_file(folder / files[shard])
    table = {
        name.removeprefix(CONDITION): value.float()
        for name, value in tensors.items()
        if name.startswith(CONDITION)
    }
    return [
        Encoded(latent.float(), {name: value[prompt] for name, value in table.items()})
        for latent, prompt in zip(tensors["latents"], tensors["prompt"].tolist(), strict=True)
    ]


def collate(samples: Sequence[Encoded], device: torch.device) -> tuple[Tensor, Conditions]:
    """x_0 `[B, C, h, w]` and conditions `[B, ...]`, on the device."""
    conditions = {
        name: torch.stack([sample.condition[name] for sample in samples]).to(device)
        for name in samples[0].condition
    }
    return torch.stack([sample.latent for sample in samples]).to(device), conditions
