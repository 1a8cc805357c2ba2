"""What every objective that makes a model of the chain is given, and what it gives back."""

from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Self

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from fewstep.backbones.base import Backbone, Model
from fewstep.config.base import Section
from fewstep.config.training import TrainingConfig
from fewstep.data.encoded import open_encoded
from fewstep.data.noise import noise_key
from fewstep.data.prompted import Prompted, stacked
from fewstep.data.stream import Stream
from fewstep.data.triplets import Triplet, TripletBatch, collate, open_triplets
from fewstep.diffusion.denoiser import Conditions, Denoiser
from fewstep.diffusion.solvers import Solver, solve, trailing
from fewstep.hardware import device
from fewstep.keyed import Key
from fewstep.objectives.lora import LoraSettings, attach, twin
from fewstep.training.method import Method

PREVIEWED = 8


class ObjectiveConfig(Section):
    """What the parameters of every objective have in common."""

    from_: str = Field(alias="from")
    """The model it starts from: `teacher`, `reflow`, `halve-4`, a student's name ..."""
    training: TrainingConfig
    lora: LoraSettings | None = None
    """Train a low-rank adapter instead of all weights; null: all."""
    guidance_embedding: bool = False
    """The student takes guidance as a condition; it learns from triplets whose `guidance` varies."""

    @property
    def needs_feature_maps(self) -> bool:
        """Whether the loss compares maps of the network `features`."""
        return False

    @model_validator(mode="after")
    def _whole(self) -> Self:
        if self.lora is not None and self.guidance_embedding:
            raise ValueError("guidance_embedding trains weights that are not in an adapter; choose one")
        return self


@dataclass(frozen=True)
class Ingredients:
    """The inputs of an objective, opened when first asked for.

    name: of the model to be made; with `seed` it keys everything random. start: the model it starts from, as
    it stays. student: equal to it, and to be trained, all or its adapter. shards: of triplets. features:
    where the feature network of a perceptual loss lies. encoded: where encoded real pictures lie.
    negative_prompt: of the teacher's guidance, as `sampling` has it.
    """

    name: str
    seed: int
    start: Model
    student: Model
    backbone: Backbone
    shards: Sequence[Path]
    features: Path | None
    encoded: Path | None
    negative_prompt: str = ""

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
    def real(self) -> Stream[Prompted]:
        """Encoded real pictures in this training's own order."""
        assert self.encoded is not None, "this objective was given no real pictures"
        return open_encoded(self.encoded, self.key("real"))

    def real_batch(self, positions: Sequence[int]) -> tuple[Tensor, Conditions]:
        """x_0 `[B, C, h, w]` of real pictures and their captions' conditions, on the device."""
        return stacked(self.real.rows(positions), device())

    def preview(self, denoiser: Denoiser, steps: int) -> Tensor:
        """Pictures `[N, 3, H, W]` of the first triplets' noises and prompts, in `steps` DDIM steps."""
        batch = self.triplet_batch(range(PREVIEWED))
        return self.backbone.decode(
            solve(Solver.DDIM, denoiser, batch.eps, trailing(steps), batch.conditions, denoiser.path)
        )

    def unconditional(self) -> Conditions:
        """The other side of guidance, batch size 1."""
        with torch.no_grad():
            return self.backbone.unconditional(self.negative_prompt)


def start_and_student(
    start: Model, name: str, backbone: Backbone, config: ObjectiveConfig, seed: int
) -> tuple[Model, Model]:
    """The start as it stays, and the student that begins as its equal, under the new name.

    A whole student is a copy; with `lora` both share one copy of the base weights.
    """
    takes_guidance = start.takes_guidance or config.guidance_embedding
    if config.lora is None:
        widened = takes_guidance and not start.takes_guidance
        net = backbone.with_guidance(start.net) if widened else deepcopy(start.net)
        net.requires_grad_(True)
    else:
        net = twin(start.net)
        attach(net, config.lora, backbone.lora_targets, Key(seed, f"{name}/lora").seed32(0))
    student = with_net(start, net, backbone)
    return start, replace(student, name=name, is_teacher=False, takes_guidance=takes_guidance)


def with_net(model: Model, net: nn.Module, backbone: Backbone) -> Model:
    """The model with another network in its place."""
    return replace(model, net=net, denoiser=replace(model.denoiser, network=backbone.network(net)))


@dataclass(frozen=True)
class Objective:
    """A method and the model it trains; after training, the model's network is the trained one."""

    method: Method
    model: Model
