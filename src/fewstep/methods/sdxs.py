"""One-step distillation of SDXS (Song et al. 2024, "SDXS: Real-time one-step latent diffusion models").

1. Feature matching warm-up: the student's image from a triplet's noise is compared with the teacher's by SSIM
   of feature maps. Only the student is trained.
2. Segmented score distillation (algorithm 1): the scores of teacher and fake are compared at times in
   [0, alpha T]. Feature matching, times lambda_FM, replaces the noisier segment, where scores are inaccurate.
   The fake starts from the teacher and is trained on the student's samples. alpha and lambda_FM change
   linearly over this phase.
3. GAN: images of this method have little texture. So the authors train an adapter of very low rank with a GAN
   loss for a short time. That is a second student, which starts from the first:

       sharp: {method: sdxs, from: one_step, lora: {rank: 2, alpha: 2}, gan: {...}, ...}

   `gan.from_step` makes it the last phase of one training instead.

The discriminator has a head on each map of the frozen feature network (projected GAN, Sauer et al. 2021). Its
real images are the teacher's. Unlike those of StyleGAN-T, its heads take no prompt and see no augmentation.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Annotated, ClassVar, Literal, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from fewstep.backbones.model import Model
from fewstep.config.base import Section
from fewstep.config.sampling import Scale
from fewstep.config.training import OptimizerConfig
from fewstep.core.hardware import device
from fewstep.core.keyed import Key
from fewstep.diffusion.denoiser import add_noise
from fewstep.features.network import FeatureNetwork
from fewstep.losses.adversarial import LOSSES, Kind, clip_critic
from fewstep.losses.distribution_matching import distribution_matching
from fewstep.losses.feature_matching import feature_matching
from fewstep.students import scores
from fewstep.students.config import Decode, ImageLoss
from fewstep.students.context import Context
from fewstep.students.discriminator import new_head
from fewstep.students.perceptual import map_widths, open_maps
from fewstep.students.scores import ScoreConfig, ScoreDistillation, few_step
from fewstep.training.method import Group, Rows

Share = Annotated[float, Field(gt=0, le=1)]
Weight = Annotated[float, Field(ge=0)]


class Gan(Section):
    """Discriminator on the feature maps of the student's and the teacher's images."""

    loss: Kind = "hinge"
    """ADD (Sauer et al. 2023), whose settings the authors take, has hinge."""
    weight: float = Field(0.1, ge=0)
    """Weight in the student's loss."""
    from_step: int = Field(0, ge=0)
    """First step at which the discriminator is trained and used."""
    optimizer: OptimizerConfig
    """Optimizer of the heads."""


class Config(ScoreConfig):
    """Parameters of the method `sdxs`. The authors give no values of alpha and lambda_FM."""

    learns_from: ClassVar[tuple[str, ...]] = ("triplets",)
    steps: Literal[1] = 1
    """Steps of the student."""
    guidance: Scale = 1.0
    """Guidance scale of the teacher's scores; the triplets' should be the same."""
    student_every: int = Field(1, ge=1)
    """Updates of the fake per update of the student, after the warm-up."""
    warmup_steps: int = Field(0, ge=0)
    """Steps of feature matching alone."""
    alpha: tuple[Share, Share] = (1.0, 0.7)
    """First and last share alpha of the times, up to `latest`, at which scores are compared."""
    lambda_fm: tuple[Weight, Weight] = (1.0, 0.1)
    """First and last weight of feature matching; [0, 0]: none. The warm-up has the first."""
    gan: Gan | None = None
    """Null: no discriminator."""

    @property
    def needs_feature_maps(self) -> bool:
        return any(self.lambda_fm) or self.gan is not None

    @property
    def image_loss(self) -> ImageLoss | None:
        return partial(untrained_terms, self) if self.needs_feature_maps else None

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.warmup_steps >= self.training.steps:
            raise ValueError(
                f"warmup_steps = {self.warmup_steps}: has to be below training.steps = {self.training.steps}"
            )
        if self.warmup_steps > 0 and self.lambda_fm[0] == 0:
            raise ValueError("warmup_steps: has no loss where lambda_fm starts at 0; set warmup_steps: 0")
        if min(self.alpha) * self.latest <= self.earliest:
            raise ValueError(f"alpha = {min(self.alpha)}: leaves no times above earliest = {self.earliest}")
        first, last = self.warmup_steps, self.training.steps - 1
        if self.gan is not None and not first <= self.gan.from_step <= last:
            raise ValueError(
                f"gan.from_step = {self.gan.from_step}: has to be in [{first}, {last}], after the warm-up"
            )
        return self

    def at(self, step: int) -> tuple[float, float]:
        """(alpha, lambda_FM) of a step: linear from the end of the warm-up to the last step."""
        last = self.training.steps - 1
        progress = max(step - self.warmup_steps, 0) / max(last - self.warmup_steps, 1)
        alpha, lambda_fm = ((1 - progress) * a + progress * b for a, b in (self.alpha, self.lambda_fm))
        return alpha, lambda_fm


student_of = few_step


@dataclass(frozen=True)
class Batch(scores.Batch):
    """real: the teacher's end point of the same noise."""

    step: int
    """Step of the training."""


class SegmentedScores(ScoreDistillation):
    """`integral of w(t) (s_F - s_w) dt over [0, alpha T] + lambda_FM L_FM` (eq. 11).

    The integral is alpha times the mean over times that are uniform in [0, alpha T]. The paper does not state
    w(t). Diff-Instruct's code (Luo et al. 2023) takes the plain difference of the x_0, without normalisation
    per sample: `w(t) = sigma^2 / alpha^2`, with the schedule's alpha and sigma.
    """

    config: Config

    def __init__(self, config: Config, context: Context, student: Model) -> None:
        super().__init__(config, context, student)
        self.heads: list[nn.Sequential] = []
        if config.needs_feature_maps:
            self.features = open_maps(context)
            self.frozen = (*self.frozen, context.backbone.decoder())
        if config.gan is not None:
            widths = enumerate(map_widths(self.features))
            self.heads = [new_head(width, context.key(f"head/{i}")).to(device()) for i, width in widths]
            modules: dict[str, nn.Module] = {f"head_{i}": head for i, head in enumerate(self.heads)}
            self.groups = {**self.groups, "discriminator": Group(modules, config.gan.optimizer)}

    def schedule(self, step: int) -> Sequence[str]:
        after = step - self.config.warmup_steps
        if after < 0:
            return ("student",)
        discriminator = ("discriminator",) if self.adversarial(step) else ()
        student = ("student",) if after % self.config.student_every == 0 else ()
        return ("fake", *discriminator, *student)

    def adversarial(self, step: int) -> bool:
        """Whether the discriminator is used at this step."""
        return self.config.gan is not None and step >= self.config.gan.from_step

    def batch(self, rows: Rows) -> Batch:
        """The student starts from the noise of the triplets, not from fresh noise."""
        drawn, pairs = super().batch(rows), self.context.triplet_batch(rows.positions)
        eps = pairs.eps.double()
        x_t, t = self.first_input(eps)
        triplet = {"real": pairs.x_0, "noise": eps[None], "x_t": x_t, "t": t}
        return Batch(**vars(drawn) | triplet, step=rows.step)

    def prepare(self, batch: Batch) -> Batch:  # type: ignore[override]
        if batch.step < self.config.warmup_steps:
            return batch  # only the fake and the discriminator need samples without gradient
        return Batch(**vars(super().prepare(batch)))

    def student_losses(self, x: Tensor, batch: Batch) -> dict[str, Tensor]:  # type: ignore[override]
        config, (alpha, lambda_fm), terms = self.config, self.config.at(batch.step), {}
        if batch.step >= config.warmup_steps:
            terms["matching"] = distribution_matching(x, alpha * self.difference(x, batch, alpha))
        if config.needs_feature_maps:
            gan = config.gan if self.adversarial(batch.step) else None
            terms |= image_terms(self.maps, x, batch.real, lambda_fm, gan, self.heads)
        return terms

    @torch.no_grad()
    def difference(self, x: Tensor, batch: Batch, alpha: float) -> Tensor:
        """`D_F - D_w` of x `[B, ...]` noised at times uniform in [earliest, alpha latest], float64."""
        low, high = self.config.earliest, alpha * self.config.latest
        tau = low + (high - low) * batch.times[:, 0]
        x_tau = add_noise(self.scores, x.double(), batch.eps[0], tau)
        fake = self.fake_estimate(x_tau, tau, batch.conditions).x_0
        return fake - self.real(x_tau, tau, batch.conditions).x_0

    def maps(self, x: Tensor) -> list[Tensor]:
        """Feature maps of the images of x `[B, ...]`."""
        return self.features.maps(self.context.backbone.decode(x.float()))

    def losses(self, group: str, batch: scores.Batch, step: int) -> dict[str, Tensor]:
        if group == "discriminator":
            return self.discriminator_losses(batch)
        return super().losses(group, batch, step)

    def discriminator_losses(self, batch: scores.Batch) -> dict[str, Tensor]:
        """Mean of the heads' losses for the teacher's and the student's images."""
        assert self.config.gan is not None
        loss = LOSSES[self.config.gan.loss].discriminator
        with torch.no_grad():
            real, drawn = self.maps(batch.real), self.maps(batch.x)
        each = [loss(head(a), head(b)) for head, a, b in zip(self.heads, real, drawn, strict=True)]
        return {"critic": torch.stack(each).mean()}

    def updated(self, group: str) -> None:
        if group == "discriminator" and self.config.gan is not None:
            for head in self.heads:
                clip_critic(self.config.gan.loss, head)


METHOD = SegmentedScores


def image_terms(
    maps_of: Callable[[Tensor], list[Tensor]],
    x: Tensor,
    real: Tensor,
    lambda_fm: float,
    gan: Gan | None,
    heads: Sequence[nn.Module],
) -> dict[str, Tensor]:
    """Feature matching of x with real `[B, ...]`, and the adversarial loss of x unless `gan` is None."""
    maps = maps_of(x)
    with torch.no_grad():
        targets = maps_of(real)
    terms = {"features": lambda_fm * feature_matching(maps, targets)}
    if gan is not None:
        generator = LOSSES[gan.loss].generator
        each = [generator(head(features)) for head, features in zip(heads, maps, strict=True)]
        terms["adversarial"] = gan.weight * torch.stack(each).mean()
    return terms


def untrained_terms(
    config: Config, x: Tensor, real: Tensor, decode: Decode, features: FeatureNetwork | None
) -> dict[str, Tensor]:
    """`image_terms` with untrained heads."""
    assert features is not None, "feature matching needs a feature network"
    widths = map_widths(features) if config.gan is not None else []
    with x.device:
        heads = [new_head(width, Key(0, "untrained")).requires_grad_(False) for width in widths]

    def maps_of(x: Tensor) -> list[Tensor]:
        return features.maps(decode(x.float()))

    return image_terms(maps_of, x, real, max(config.lambda_fm), config.gan, heads)
