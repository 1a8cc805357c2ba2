"""Trajectory distribution matching (Luo et al. 2025, "Learning few-step diffusion models by trajectory
distribution matching").

A student of K steps follows an ODE. At the end s of each of its steps, its samples are to have the
distribution of the teacher's at s. Both scores are compared at times tau in [s, t) of the step, where the
sample is noised from s to tau. The roll-out is deterministic, so ODE samplers stay valid.

The authors train the fake to predict x_hat from x_tau. Unless s = 0 that is not the denoiser of x_tau,
because x_s is not x_hat plus Gaussian noise. Here the fake learns the score of x_tau itself, by denoising
score matching from x_s. So fake and teacher agree exactly where both distributions do. For K = 1 both are the
same.
"""

from dataclasses import replace
from itertools import pairwise
from typing import NamedTuple

import torch
from pydantic import Field
from torch import Tensor

from fewstep.backbones.model import Model
from fewstep.diffusion.denoiser import Estimate, expand_like
from fewstep.diffusion.schedules import Schedule
from fewstep.diffusion.solvers import Solver, at, ddim_step
from fewstep.losses.distribution_matching import error_scale
from fewstep.losses.huber import pseudo_huber
from fewstep.students.context import Context
from fewstep.students.guidance import guided_model
from fewstep.students.scores import Batch, ScoreConfig, ScoreDistillation, few_step

LARGEST_SNR = 5.0
"""Bound of the signal-to-noise ratio by which the fake's loss is weighted."""


class Config(ScoreConfig):
    """Parameters of the method `tdm`. Published: 4 steps, guidance 4.5, learning rate 2e-5."""

    steps: int = Field(4, ge=1)
    """Steps of the student."""
    student_every: int = Field(1, ge=1)
    """Updates of the fake per update of the student."""
    huber: float = Field(1e-3, gt=0)
    """c of the pseudo-Huber loss; differences above it all count nearly the same."""


def student_of(config: Config, start: Model) -> Model:
    """The start on its own path, sampled by DDIM."""
    return few_step(config, start, Solver.DDIM)


class TrajectoryMatching(ScoreDistillation):
    """Pseudo-Huber distance of x_hat to `sg(x_hat + D_w - D_F)`, over `mean|x_hat - D_w|`.

    With `D_w = D_c + (w - 1) (D_c - D_u)` this is the paper's target. All networks are evaluated on the
    student's path.
    """

    config: Config

    def __init__(self, config: Config, context: Context, student: Model) -> None:
        super().__init__(config, context, student)
        teacher = replace(self.teacher, denoiser=self.teacher.denoiser.on(self.path))
        self.real = guided_model(teacher, context, config.scale, config.per_sample)
        self.fake_estimate = self.fake.denoiser.on(self.path)

    def prepare(self, batch: Batch) -> Batch:
        """The student's roll-out to the end s of its trained step; at s = 0 the sample is its x_0."""
        times = [at(t, batch.real) for t in self.config.times]
        trained, x_s = len(batch.noise), batch.x_t
        for t, s in pairwise(times[: trained + 1]):
            x_t, estimate = x_s, in_double(self.estimate(x_s, t, s, batch.conditions))
            x_s = ddim_step(estimate, self.path, s) if s.any() else estimate.x_0
        return replace(batch, x_t=x_t, t=t, s=s, x=x_s)

    def student_losses(self, x: Tensor, batch: Batch) -> dict[str, Tensor]:
        low, high = self.config.earliest, self.config.latest
        tau = batch.s + (low + (high - low) * batch.times[:, 0]) * (batch.t - batch.s)
        with torch.no_grad():
            x_tau = noised_further(self.path, batch.x, batch.s, tau, batch.eps[0]).x_tau
            real = self.real(x_tau, tau, batch.conditions).x_0
            fake = self.fake_estimate(x_tau, tau, batch.conditions).x_0
            target = x + (real - fake).to(x)
        return {"matching": pseudo_huber(x - target, self.config.huber, error_scale(x, real.to(x)))}

    def fake_losses(self, batch: Batch) -> dict[str, Tensor]:
        """`min(SNR, 5) (v / sigma^2) ||D_F(x_tau) - y||^2`, `E[y | x_tau]` the denoiser of x_tau."""
        tau = batch.s + batch.times[:, 1] * (batch.t - batch.s)
        further = noised_further(self.path, batch.x, batch.s, tau, batch.eps[1])
        error = (self.fake_estimate(further.x_tau.float(), tau, batch.conditions).x_0 - further.y).float()
        alpha, sigma = self.path.alpha_sigma(tau)
        weight = (alpha / sigma).square().clamp(max=LARGEST_SNR) * further.variance / sigma.square()
        return {"denoising": (expand_like(weight, error) * error.square()).mean()}


METHOD = TrajectoryMatching


class Further(NamedTuple):
    """x_tau `[B, ...]`; y `[B, ...]` with `E[y | x_tau]` its denoiser; v `[B]`, variance of the noise."""

    x_tau: Tensor
    y: Tensor
    variance: Tensor


def noised_further(path: Schedule, x_s: Tensor, s: Tensor, tau: Tensor, eps: Tensor) -> Further:
    """x_s `[B, ...]` at s noised to tau > s: `x_tau = r x_s + sqrt(v) eps`.

    `r = alpha_tau / alpha_s` and `v = sigma_tau^2 - r^2 sigma_s^2`, so that x_tau has the teacher's
    distribution at tau where x_s has it at s. The score of x_tau given x_s is `-eps / sqrt(v)`; by Tweedie's
    formula `y = (x_tau - sigma_tau^2 eps / sqrt(v)) / alpha_tau`, which is computed without a division by
    alpha_tau.
    """
    (alpha, sigma), (alpha_s, sigma_s) = path.alpha_sigma(tau), path.alpha_sigma(s)
    r = alpha / alpha_s
    v = sigma.square() - (r * sigma_s).square()
    x_tau = expand_like(r, x_s) * x_s + expand_like(v.sqrt(), x_s) * eps
    y = (x_s - expand_like(r * sigma_s.square() / v.sqrt(), x_s) * eps) / expand_like(alpha_s, x_s)
    return Further(x_tau, y, v)


def in_double(estimate: Estimate) -> Estimate:
    """The estimate in float64."""
    return Estimate(estimate.x_0.double(), estimate.eps.double())
