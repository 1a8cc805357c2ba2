"""Distribution matching distillation (Yin et al. 2024, "Improved distribution matching distillation").

The student follows the difference of two scores: the teacher's, and that of a fake denoiser trained on the
student's samples. Where it vanishes, both distributions agree. All terms are differences of x_0, so that
epsilon-, v- and flow-prediction teachers share one formula.

Options: a discriminator on the fake's features (`gan`), weights of another f-divergence, decoupled guidance
(arXiv 2511.22677), a diversity term (DP-DMD) and implicit distribution alignment (SenseFlow, `ida`).
"""

from dataclasses import replace
from typing import Literal, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from fewstep.backbones.model import Model
from fewstep.config.base import Section
from fewstep.core.errors import UserError
from fewstep.diffusion.denoiser import add_noise, branches, expand_like, scale_of, within
from fewstep.diffusion.solvers import at, ddim, ddim_step, trailing
from fewstep.losses.adversarial import LOSSES, Kind, clip_critic
from fewstep.losses.distribution_matching import distribution_matching, divergence_weight, error_scale
from fewstep.students.context import Context
from fewstep.students.discriminator import Features, head_on
from fewstep.students.guidance import guided_model
from fewstep.students.scores import Batch, ScoreConfig, ScoreDistillation, few_step

CLAMP = 0.1
"""Least scale of a decoupled term (arXiv 2511.22677)."""


class Gan(Section):
    """Discriminator on the fake's features; published weights: SD 1.5 (SDXL)."""

    loss: Kind = "non_saturating"
    weight: float = Field(1e-3, ge=0)
    """Weight in the student's loss; 1e-3 (5e-3)."""
    critic_weight: float = Field(1e-2, gt=0)
    """Weight of the discriminator's loss beside the fake's regression."""
    divergence: Literal["reverse_kl", "forward_kl", "jensen_shannon", "hellinger"] = "reverse_kl"
    """The f-divergence to minimise; others than reverse_kl weight samples by the discriminator's ratio."""


class Diversity(Section):
    """The student's first step also learns where the teacher's ODE is after `steps` of `of` steps."""

    weight: float = Field(0.05, ge=0)
    steps: int = Field(10, ge=1)
    of: int = Field(30, ge=2)

    @model_validator(mode="after")
    def _within(self) -> Self:
        if self.steps >= self.of:
            raise ValueError(f"steps = {self.steps}: has to be below of = {self.of}")
        return self


class Config(ScoreConfig):
    """Parameters of the method `dmd2`."""

    gan: Gan | None = None
    """Null: no discriminator."""
    decoupled: bool = False
    """Guidance and distribution matching at two times of their own, each with a scale of its own."""
    diversity: Diversity | None = None
    """Null: no such term."""
    ida: float = Field(0.0, ge=0, lt=1)
    """Share of the student's weights mixed into the fake's after the student's update; SenseFlow: 0.03."""

    @property
    def gradient_passes(self) -> int:
        return 1 + (self.gan is not None) + (self.diversity is not None)

    @model_validator(mode="after")
    def _starts_at_noise(self) -> Self:
        if self.diversity is not None and self.first_time < 1:
            raise ValueError(
                "diversity: compares with the teacher's ODE from pure noise; needs first_time: 1"
            )
        return self


student_of = few_step


class DistributionMatching(ScoreDistillation):
    """`1/2 ||x - sg(x - g)||^2` with `g = (D_F - D_w)(x_tau) / mean|x - D_w|`."""

    config: Config

    def __init__(self, config: Config, context: Context, student: Model) -> None:
        super().__init__(config, context, student)
        if config.gan is not None:
            self.features = Features(self.fake.net, self.fake.denoiser)
            real, conditions = context.clean_batch([0])
            self.head = head_on(self.features, real, conditions, context.key("head"))
            self.groups["fake"].modules["head"] = self.head
        if config.decoupled:
            self.unconditional = context.unconditional()
        if config.ida > 0 and shapes(student.net) != shapes(self.fake.net):
            raise UserError(f"ida: the networks of {config.from_} and of the teacher differ; set ida: 0")

    def student_losses(self, x: Tensor, batch: Batch) -> dict[str, Tensor]:
        config, (x_tau, tau) = self.config, self.noised(x, batch)
        with torch.no_grad():
            find = self.decoupled_gradient if config.decoupled else self.gradient
            gradient = find(x, x_tau, tau, batch)
        terms = {}
        if config.gan is not None:
            logits = self.head(self.features(x_tau.float(), tau, batch.conditions))
            weight = divergence_weight(config.gan.divergence, logits.detach().flatten(1).mean(1))
            gradient = gradient * expand_like(weight, gradient)
            terms["adversarial"] = config.gan.weight * LOSSES[config.gan.loss].generator(logits)
        if config.diversity is not None:
            terms["diversity"] = config.diversity.weight * self.first_step_error(batch, config.diversity)
        return {"matching": distribution_matching(x, gradient)} | terms

    def gradient(self, x: Tensor, x_tau: Tensor, tau: Tensor, batch: Batch) -> Tensor:
        """`(D_F - D_w) / mean|x - D_w|` (DMD, eq. 7 and 8)."""
        real = self.real(x_tau, tau, batch.conditions).x_0
        fake = self.fake_estimate(x_tau, tau, batch.conditions).x_0
        return (fake - real) / error_scale(x, real)

    def decoupled_gradient(self, x: Tensor, x_tau: Tensor, tau: Tensor, batch: Batch) -> Tensor:
        """`(D_F - D_c)(x_tau) - (w - 1) (D_c - D_u)(x_cleaner)`, each over its own `mean|x - D_c|`.

        The second time is uniform between 0 and the student's own time.
        """
        real = self.teacher.denoiser(x_tau, tau, batch.conditions).x_0
        fake = self.fake_estimate(x_tau, tau, batch.conditions).x_0
        cleaner = batch.times[:, 2] * self.scores.time_at(self.path.angle(batch.t))
        x_cleaner = add_noise(self.scores, x.double(), batch.eps[0], cleaner)
        (with_prompt, _), (without, _) = branches(
            self.teacher.denoiser, self.unconditional, x_cleaner, cleaner, batch.conditions
        )
        beyond = scale_of(batch.conditions, x_tau, self.config.scale) - 1
        if (applies := within(self.teacher.denoiser, self.context.guidance_interval)) is not None:
            beyond = beyond * expand_like(applies(cleaner), x_tau)
        matching = (fake - real) / error_scale(x, real, CLAMP)
        return matching - beyond * (with_prompt - without) / error_scale(x, with_prompt, CLAMP)

    def first_step_error(self, batch: Batch, diversity: Diversity) -> Tensor:
        """`||(x_s - z_s) / (1 - s)||^2`: student and teacher's ODE at time s, from the same noise (DP-DMD).

        On the rectified flow it is the error of the student's velocity.
        """
        path, times = self.path, trailing(diversity.of)[: diversity.steps + 1]
        x_1, t = self.first_input(batch.noise[0])
        s = at(times[-1], x_1)
        teacher = replace(self.teacher, denoiser=self.teacher.denoiser.on(path))
        with torch.no_grad():
            solved = guided_model(teacher, self.context, self.config.scale, self.config.per_sample)
            z_s = ddim(solved, x_1, times, batch.conditions, path).float()
        x_s = ddim_step(self.estimate(x_1, t, batch.s, batch.conditions), path, s)
        return ((x_s - z_s) / expand_like(1 - s, x_s)).square().mean()

    def fake_losses(self, batch: Batch) -> dict[str, Tensor]:
        terms = super().fake_losses(batch)
        if (gan := self.config.gan) is not None:
            tau = batch.times[:, 1]
            drawn, real = (
                add_noise(self.scores, x, batch.eps[1], tau) for x in (batch.x, batch.real.double())
            )
            both = {name: torch.cat([value, value]) for name, value in batch.conditions.items()}
            features = self.features(torch.cat([real, drawn]).float(), torch.cat([tau, tau]), both)
            loss = LOSSES[gan.loss].discriminator(*self.head(features).chunk(2))
            terms["critic"] = gan.critic_weight * loss
        return terms

    def updated(self, group: str) -> None:
        if group == "student" and self.config.ida > 0:
            own = dict(self.student.net.named_parameters())
            for name, weight in self.fake.net.named_parameters():
                if weight.requires_grad:
                    weight.lerp_(own[name].to(weight), self.config.ida)
        if group == "fake" and self.config.gan is not None:
            clip_critic(self.config.gan.loss, self.head)


METHOD = DistributionMatching


def shapes(net: nn.Module) -> dict[str, torch.Size]:
    """Shape of each trained weight."""
    return {name: weight.shape for name, weight in net.named_parameters() if weight.requires_grad}
