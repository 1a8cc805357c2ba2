"""Direct distillation to one step (InstaFlow, Liu et al. 2023, section 3.2).

`x_hat = eps - u(eps, 1, c)` is regressed on the end point of the teacher's ODE: first by a distance of
latents, then also by a perceptual distance of the decoded images.

The teacher's end point jumps where nearby noise samples map to different images. A network is continuous and
cannot jump. There L2 learns the mean of the two images. L1 learns the median: the more frequent image, or any
mixture of both where they are equally frequent. The log of each sample's L1 distance is mode-seeking: it is
smallest at either image and largest in between.
"""

from dataclasses import replace
from functools import partial
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from fewstep.backbones.model import Model
from fewstep.data.triplets import TripletBatch
from fewstep.diffusion.schedules import RectifiedFlow
from fewstep.diffusion.solvers import asked
from fewstep.features.network import FeatureNetwork
from fewstep.losses.perceptual import perceptual_distance
from fewstep.students.config import Decode, ImageLoss, MethodConfig
from fewstep.students.context import Context
from fewstep.students.method import StudentMethod
from fewstep.students.perceptual import open_maps
from fewstep.training.method import Group, Rows

NEAR = 0.02
"""A sample's mean absolute error, of latents of unit variance, below which `log_l1` is nearly linear."""


class Config(MethodConfig):
    """Parameters of the method `direct`."""

    method: str
    latent_loss: Literal["l2", "l1", "log_l1"] = "l2"
    """Distance of latents; log_l1 is mode-seeking and gives the sharpest images, the others mix two."""
    latent_weight: float = Field(1.0, ge=0)
    """Weight of the latents' error."""
    perceptual_weight: float = Field(0.0, ge=0)
    """Weight of the perceptual distance."""
    pixel_weight: float = Field(0.0, ge=0)
    """Weight of the absolute error of decoded pixels, in the perceptual phase."""
    perceptual_from: int = Field(0, ge=0)
    """First step of the perceptual phase; before it, only the latents' error is used."""

    @property
    def evaluates_start(self) -> bool:
        return False

    @property
    def needs_feature_maps(self) -> bool:
        return self.perceptual_weight > 0

    @property
    def image_loss(self) -> ImageLoss | None:
        return partial(image_terms, self) if self.perceptual_weight + self.pixel_weight > 0 else None


def student_of(config: Config, start: Model) -> Model:
    """The start model on the rectified-flow path, in one step."""
    return replace(start, denoiser=start.denoiser.on(RectifiedFlow()), steps=1)


class Direct(StudentMethod):
    """Regression at t = 1 on stored pairs."""

    def __init__(self, config: Config, context: Context, student: Model) -> None:
        super().__init__(config, context, student)
        self.config = config
        self.groups = {"student": Group({"net": student.net}, config.training)}
        self.features: FeatureNetwork | None = None
        if config.perceptual_weight + config.pixel_weight > 0:
            self.frozen = (context.backbone.decoder(),)
        if config.perceptual_weight > 0:
            self.features = open_maps(context)

    def batch(self, rows: Rows) -> TripletBatch:
        return self.context.triplet_batch(rows.positions)

    def losses(self, group: str, batch: TripletBatch, step: int) -> dict[str, Tensor]:
        config, backbone = self.config, self.context.backbone
        t = torch.ones(len(batch.eps), device=batch.eps.device)
        x_hat = asked(self.denoiser, batch.eps, t, torch.zeros_like(t), batch.conditions).x_0
        terms = {"latents": config.latent_weight * distance(config.latent_loss, x_hat, batch.x_0)}
        if step >= config.perceptual_from and config.perceptual_weight + config.pixel_weight > 0:
            terms |= image_terms(config, x_hat, batch.x_0, backbone.decode, self.features)
        return terms


METHOD = Direct


def image_terms(
    config: Config, x_hat: Tensor, x_0: Tensor, decode: Decode, features: FeatureNetwork | None
) -> dict[str, Tensor]:
    """Distances of the images of latents x_hat, x_0 `[B, ...]`, mean over samples."""
    with torch.no_grad():
        target = decode(x_0)
    image = decode(x_hat)
    terms = {"pixels": config.pixel_weight * (image - target).abs().mean()}
    if features is not None:
        difference = perceptual_distance(features, image, target)
        terms["perceptual"] = config.perceptual_weight * difference
    return terms


def distance(kind: str, x_hat: Tensor, x_0: Tensor) -> Tensor:
    """Distance of latents x_hat, x_0 `[B, ...]`, mean over samples; kind: see `Config.latent_loss`."""
    error = (x_hat - x_0).flatten(1)
    if kind == "l2":
        return error.square().mean()
    each = error.abs().mean(1)
    return torch.log(each + NEAR).mean() if kind == "log_l1" else each.mean()
