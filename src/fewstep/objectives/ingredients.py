"""What every objective that makes a model of the chain is given, and what it gives back."""

from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import torch
from pydantic import Field
from torch import Tensor

from fewstep.backbones.base import Backbone, Model
from fewstep.config.base import Section
from fewstep.config.training import TrainingConfig
from fewstep.data.encoded import Encoded, open_encoded
from fewstep.data.encoded import collate as collate_encoded
from fewstep.data.stream import Stream
from fewstep.data.triplets import Triplet, TripletBatch, collate, noise_key, open_triplets
from fewstep.diffusion.denoiser import Conditions, Denoiser
from fewstep.diffusion.solvers import Solver, solve, trailing
from fewstep.hardware import device
from fewstep.keyed import Key
from fewstep.objectives.lora import LoraSettings, attach
from fewstep.training.method import Method

PREVIEWED = 8


class ObjectiveConfig(Section):
    """What the parameters of every objective have in common."""

    from_: str = Field(alias="from")
    """The model it starts from: `teacher`, `reflow`, `halve-4`, a student's name ..."""
    training: TrainingConfig
    lora: LoraSettings | None = None
    """Train a low-rank adapter instead of all weights; null: all."""


@dataclass(frozen=True)
class Ingredients:
    """The inputs of an objective, opened when first asked for.

    name: of the model to be made; with `seed` it keys everything random. start: the model it starts from.
    shards: of triplets. features: where the feature network of a perceptual loss lies. encoded: where
    encoded real pictures lie. lora: of the student; None for one that is trained whole.
    """

    name: str
    seed: int
    start: Model
    backbone: Backbone
    shards: Sequence[Path]
    features: Path | None
    encoded: Path | None
    lora: LoraSettings | None = None

    def key(self, use: str) -> Key:
        """Randomness for one use (`noise`, `times` ...) of this training."""
        return Key(self.seed, f"{self.name}/{use}")

    @cached_property
    def triplets(self) -> Stream[Triplet]:
        """Teacher triplets in this training's own order."""
        return open_triplets(self.shards, self.key("order"))

    def triplet_batch(self, positions: Sequence[int]) -> TripletBatch:
        """Triplets with their own noise, on the device."""
        return collate(self.triplets.rows(positions), noise_key(self.seed), device())

    @cached_property
    def real(self) -> Stream[Encoded]:
        """Encoded real pictures in this training's own order."""
        assert self.encoded is not None, "this objective was given no real pictures"
        return open_encoded(self.encoded, self.key("order"))

    def real_batch(self, positions: Sequence[int]) -> tuple[Tensor, Conditions]:
        """x_0 `[B, C, h, w]` of real pictures and their captions' conditions, on the device."""
        return collate_encoded(self.real.rows(positions), device())

    def preview(self, denoiser: Denoiser, steps: int) -> Tensor:
        """Pictures `[N, 3, H, W]` of the first triplets' noises and prompts, in `steps` DDIM steps."""
        batch = self.triplet_batch(range(PREVIEWED))
        return self.backbone.decode(
            solve(Solver.DDIM, denoiser, batch.eps, trailing(steps), batch.conditions, denoiser.path)
        )

    def unconditional(self) -> Conditions:
        """The other side of guidance, batch size 1."""
        with torch.no_grad():
            return self.backbone.unconditional()

    def student(self) -> Model:
        """A copy of the start whose network may be trained, all or its adapter, under the new name."""
        net = deepcopy(self.start.net).requires_grad_(True)
        if self.lora is not None:
            attach(net, self.lora, self.backbone.lora_targets, self.key("lora").seed32(0))
        denoiser = replace(self.start.denoiser, network=self.backbone.network(net))
        return replace(self.start, name=self.name, net=net, denoiser=denoiser, is_teacher=False)


@dataclass(frozen=True)
class Objective:
    """A method and the model it trains; after training, the model's network is the trained one."""

    method: Method
    model: Model


def on_module(denoiser: Denoiser, backbone: Backbone, module: object) -> Denoiser:
    """The denoiser asking `module`, which the loop may have wrapped."""
    return replace(denoiser, network=backbone.network(module))  # type: ignore[arg-type]
