"""Shards of teacher triplets (text, noise, image); the noise is stored as its key and regenerated.

A shard is a folder: `triplets.safetensors` in the format of data/prompted.py, with `own.guidance` if guidance
was drawn per latent; `prompts.json`; and a manifest whose `facts` name the solver, first index and noise key.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from fewstep.artifacts.manifest import Manifest
from fewstep.core.hardware import upload
from fewstep.core.keyed import Key
from fewstep.data.noise import noise_of
from fewstep.data.prompted import Prompted, PromptedFile, collate_rows
from fewstep.data.stream import Stream
from fewstep.diffusion.denoiser import Conditions

FILE = "triplets.safetensors"


@dataclass(frozen=True)
class Triplet:
    """index: of its noise. end: the teacher's end point and its prompt."""

    index: int
    end: Prompted


@dataclass(frozen=True)
class TripletBatch:
    """x_0, eps: `[B, C, H, W]`; conditions: `[B, ...]` each."""

    x_0: Tensor
    eps: Tensor
    conditions: Conditions


def open_triplets(folders: Sequence[Path], order: Key) -> Stream[Triplet]:
    """Triplets of these shards in keyed order."""
    manifests = [Manifest.open(folder, "triplets") for folder in folders]
    counts = [manifest.facts["count"] for manifest in manifests]
    firsts = [manifest.facts["first"] for manifest in manifests]
    return Stream(counts, lambda shard: _Shard(folders[shard], firsts[shard]), order)


class _Shard:
    """The triplets of a folder, whose first index is `first`."""

    def __init__(self, folder: Path, first: int) -> None:
        self._first, self._ends = first, PromptedFile(folder / FILE)

    def __getitem__(self, row: int) -> Triplet:
        return Triplet(self._first + row, self._ends[row])


def collate(triplets: Sequence[Triplet], noise: Key, device: torch.device) -> TripletBatch:
    """Stack triplets and regenerate their noise."""
    x_0, conditions = collate_rows([triplet.end for triplet in triplets], device)
    eps = noise_of(noise, [triplet.index for triplet in triplets], x_0.shape[1:])
    return TripletBatch(x_0, upload(eps, device), conditions)
