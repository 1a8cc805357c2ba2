"""Inputs of a distillation method: models, data and random keys."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor

from fewstep.artifacts.manifest import Manifest
from fewstep.backbones.model import Model, open_model
from fewstep.backbones.protocol import Backbone
from fewstep.config.sampling import NoiseRange, SamplingConfig
from fewstep.core.hardware import device
from fewstep.core.keyed import Key
from fewstep.core.paths import TEACHER
from fewstep.data.encoded import open_encoded
from fewstep.data.noise import fresh_noise, noise_key
from fewstep.data.prompted import Prompted, collate_rows
from fewstep.data.stream import Stream
from fewstep.data.triplets import Triplet, TripletBatch, collate, open_triplets
from fewstep.diffusion.denoiser import Conditions
from fewstep.sampling.draw import Sampler

PREVIEWED = 8


@dataclass(frozen=True)
class Context:
    """Inputs of a method, opened when first used.

    name: of the new model; with `seed` it keys all randomness. start: the model it starts from, frozen.
    student: equal to the start before training; all its weights or its adapter are trained. shards: folders
    of triplets. features: folder or file of the feature network of a perceptual loss. encoded: folder of
    encoded real images. negative_prompt, guidance_interval: of the teacher's guidance, from `sampling`.
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
    guidance_interval: NoiseRange | None = None

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
        """Encoded real images in this training's own order."""
        assert self.encoded is not None, "no encoded images: set `data: encoded`"
        return open_encoded(self.encoded, self.key("real"))

    def real_batch(self, positions: Sequence[int]) -> tuple[Tensor, Conditions]:
        """x_0 `[B, C, h, w]` of real images and their captions' conditions, on the device."""
        return collate_rows(self.real.rows(positions), device())

    def clean_batch(self, positions: Sequence[int]) -> tuple[Tensor, Conditions]:
        """x_0 `[B, C, h, w]` and conditions, from the source that the method's `data` names."""
        if self.encoded is not None:
            return self.real_batch(positions)
        triplets = self.triplet_batch(positions)
        return triplets.x_0, triplets.conditions

    @cached_property
    def teacher(self) -> Model:
        """The chain's teacher, frozen, whatever the student starts from."""
        return open_model(TEACHER, self.backbone)

    @cached_property
    def sampling(self) -> SamplingConfig:
        """Settings with which the triplets were drawn; images are compared with them at equal guidance."""
        if not self.shards:
            return SamplingConfig()
        metadata = Manifest.open(self.shards[0], "triplets").facts
        return SamplingConfig.model_validate(metadata["sampling"])

    def preview(self, student: Model, steps: int) -> Tensor:
        """Images `[N, 3, H, W]` of the first triplets' noise and prompts, by the student's own sampling."""
        batch = self.triplet_batch(range(PREVIEWED))
        fresh = fresh_noise(self.key("preview"), range(PREVIEWED), batch.eps.shape[1:], batch.eps.device)
        sampler = Sampler(student, self.backbone, self.sampling)
        return sampler.images(batch.conditions, batch.eps, steps, fresh)

    def unconditional(self) -> Conditions:
        """Conditions of the negative prompt, for classifier-free guidance; batch size 1.

        The text encoders are released: a training encodes no other prompt.
        """
        with torch.no_grad():
            conditions = self.backbone.unconditional(self.negative_prompt)
        self.backbone.release_encoders()
        return conditions
