"""How each model of the chain is asked for pictures."""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from fewstep.backbones.base import Backbone, Model
from fewstep.config.sampling import SamplingConfig
from fewstep.core.hardware import autocast
from fewstep.diffusion.denoiser import GUIDANCE, Conditions, Denoise, Denoiser, asked_at, clipped, guided
from fewstep.diffusion.schedules import Schedule
from fewstep.diffusion.solvers import Solver, solve, trailing


@dataclass(frozen=True)
class Sampler:
    """One model, ready to draw.

    The teacher travels its own path with the solver, guidance and negative prompt of `sampling`; every other
    model has these built in, unless it takes guidance as a condition, and goes in plain DDIM steps along its
    path. `clip`: bound of x_0, latents' units.
    """

    model: Model
    backbone: Backbone
    sampling: SamplingConfig
    clip: float | None = None

    def denoise(self, guided_each: bool = False) -> Denoise:
        """The model's estimate with guidance and clipping; guided_each: by the condition `guidance`."""
        denoise: Denoise = self.model.denoiser
        if self.model.is_teacher and (guided_each or self.sampling.guidance != 1):
            unconditional = self.backbone.unconditional(self.sampling.negative_prompt)
            denoise = guided(denoise, unconditional, self.sampling.guidance)
        if self.model.takes_guidance:
            denoise = asked_at(denoise, self.sampling.guidance)
        if self.clip is not None:
            denoise = clipped(denoise, self.model.denoiser, self.clip)
        return denoise

    @property
    def guidance(self) -> float | None:
        """The scale that it draws at; None where that is built into the model."""
        asked = self.model.is_teacher or self.model.takes_guidance
        return self.sampling.guidance if asked else None

    def on(self, path: Schedule) -> "Sampler":
        """The same sampler with its model read on another path."""
        return self._reading(self.model.denoiser.on(path))

    def _reading(self, denoiser: Denoiser) -> "Sampler":
        return replace(self, model=replace(self.model, denoiser=denoiser))

    @torch.no_grad()
    def latents(self, conditions: Conditions, noise: Tensor, steps: int) -> Tensor:
        """From noise `[B, C, h, w]` to latents of the same shape in `steps` evaluations."""
        teacher = self.model.is_teacher
        solver = self.sampling.solver if teacher else Solver.DDIM
        times = trailing(steps)
        if teacher:
            times = [t**self.sampling.time_power for t in self.backbone.times(steps)]
        sampler = self
        if solver is Solver.DPM_SOLVER_PP_2M:
            sampler = self._reading(self.model.denoiser.without_zero_snr())
        with autocast():
            denoise = sampler.denoise(GUIDANCE in conditions)
            return solve(solver, denoise, noise, times, conditions, sampler.model.denoiser.path)

    @torch.no_grad()
    def pictures(self, conditions: Conditions, noise: Tensor, steps: int) -> Tensor:
        """From noise to pictures `[B, 3, H, W]` about in [-1, 1]."""
        latents = self.latents(conditions, noise, steps)
        with autocast():
            return self.backbone.decode(latents)

    def evaluations(self, steps: int) -> int:
        """Network evaluations per picture; guidance doubles them."""
        return steps * (2 if self.model.is_teacher and self.sampling.guidance != 1 else 1)
