"""Draws latents and images with any model of the chain."""

from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from fewstep.backbones.model import Model, open_model
from fewstep.backbones.protocol import Backbone
from fewstep.config.sampling import SamplingConfig
from fewstep.core.hardware import autocast
from fewstep.diffusion.denoiser import (
    GUIDANCE,
    Conditions,
    Denoise,
    Denoiser,
    asked_at,
    clipped,
    guided,
    within,
)
from fewstep.diffusion.sampling import Guidance
from fewstep.diffusion.schedules import Schedule
from fewstep.diffusion.solvers import Fresh, Solver, solve
from fewstep.training.half import halve_frozen

DECODER = "decoder"
"""Name of the part of a model that decodes its latents."""


@dataclass(frozen=True)
class Sampler:
    """A model with its sampling settings.

    The model's record (`Model.sampling`) sets solver, times and guidance. What the record leaves open comes
    from `sampling`, the section of params. clip: bound of x_0, in the units of the latents.
    """

    model: Model
    backbone: Backbone
    sampling: SamplingConfig
    clip: float | None = None

    def denoise(self, guided_each: bool = False) -> Denoise:
        """The model's guided and clipped estimate; guided_each: scale from the condition `guidance`."""
        denoise: Denoise = self.model.denoiser
        if self.doubled or (guided_each and self.model.sampling.guidance is Guidance.SCALE):
            unconditional = self.backbone.unconditional(self.sampling.negative_prompt)
            applies = within(self.model.denoiser, self.sampling.guidance_interval)
            denoise = guided(denoise, unconditional, self.sampling.guidance, applies)
        if self.model.takes_guidance:
            denoise = asked_at(denoise, self.sampling.guidance)
        if self.clip is not None:
            denoise = clipped(denoise, self.model.denoiser, self.clip)
        return denoise

    @property
    def guidance(self) -> float | None:
        """The guidance scale of its samples; None where guidance is built into the model."""
        built_in = self.model.sampling.guidance is Guidance.BUILT_IN
        return None if built_in else self.sampling.guidance

    @property
    def doubled(self) -> bool:
        """Whether steps in the guidance interval evaluate the network with and without the prompt."""
        return self.model.sampling.guidance is Guidance.SCALE and self.sampling.guidance != 1

    def on(self, path: Schedule) -> "Sampler":
        """The same sampler with its model evaluated on another path."""
        return self._reading(self.model.denoiser.on(path))

    def _reading(self, denoiser: Denoiser) -> "Sampler":
        return replace(self, model=replace(self.model, denoiser=denoiser))

    @torch.no_grad()
    def latents(
        self, conditions: Conditions, noise: Tensor, steps: int, fresh: Fresh | None = None
    ) -> Tensor:
        """From noise `[B, C, h, w]` to latents of the same shape in `steps` steps.

        fresh: noise that the steps add, for the solver `renoise`; see `solve`.
        """
        sampler, times = self._solving, self.times(steps)
        with autocast():
            denoise = sampler.denoise(GUIDANCE in conditions)
            return solve(self.solver, denoise, noise, times, conditions, sampler.model.denoiser.path, fresh)

    @property
    def solver(self) -> Solver:
        """The solver of its samples."""
        return self.model.sampling.solver or self.sampling.solver

    @property
    def _solving(self) -> "Sampler":
        """The sampler with its model as the solver evaluates it."""
        if self.solver is Solver.DPM_SOLVER_PP_2M:
            return self._reading(self.model.denoiser.without_zero_snr())
        return self

    def times(self, steps: int) -> list[float]:
        """`steps + 1` times of its path from 1 to 0."""
        record = self.model.sampling
        if record.follows_params:
            return [t**self.sampling.time_power for t in self.backbone.times(steps)]
        return record.grid(steps)

    @torch.no_grad()
    def images(self, conditions: Conditions, noise: Tensor, steps: int, fresh: Fresh | None = None) -> Tensor:
        """From noise to images `[B, 3, H, W]` about in [-1, 1]; see `latents`."""
        return self.decode(self.latents(conditions, noise, steps, fresh))

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        """Latents as images, by the model's own decoder where it has one."""
        with autocast():
            return self.backbone.decode(latents, self.model.parts.get(DECODER))

    def evaluations(self, steps: int) -> int:
        """Network evaluations per image; in the guidance interval a step has two."""
        if not self.doubled:
            return steps
        applies = within(self._solving.model.denoiser, self.sampling.guidance_interval)
        times = torch.tensor(self.times(steps)[:-1], dtype=torch.float64)
        return steps + (steps if applies is None else int(applies(times).sum()))


def frozen_sampler(
    folder: Path, backbone: Backbone, sampling: SamplingConfig, clip: float | None = None
) -> Sampler:
    """A model of the chain with its sampling settings, its denoiser and further networks frozen.

    folder: the model's artifact. backbone: by `frozen_backbone`. clip: see `Sampler`. Raises UserError when
    the artifact is incomplete.
    """
    model = open_model(folder, backbone)
    halve_frozen(net.requires_grad_(False) for net in (model.net, *model.parts.values()))
    return Sampler(model, backbone, sampling, clip)
