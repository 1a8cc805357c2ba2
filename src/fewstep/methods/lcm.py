"""Consistency distillation (Luo et al. 2023, "Latent consistency models", algorithm 1).

The student maps every point of the teacher's ODE to the ODE's end: `f(x_t, t) = f(x_s, s)` for a teacher step
from t to s, where the right side is a moving average of the student. Phased consistency models (Wang et al.
2024) cut the ODE into segments, each with an end of its own, and sample without fresh noise.

The published student is `c_skip x + c_out x_0`, whose boundary scaling makes `f(x_0, 0) = x_0`. Here the
target at the end of a segment is the point itself, which is the same condition and needs no constants.
"""

from dataclasses import dataclass, replace
from typing import ClassVar, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor

from fewstep.backbones.model import Model
from fewstep.diffusion.denoiser import Conditions, Denoise, Denoiser, expand_like
from fewstep.diffusion.solvers import Solver, asked, ddim_step
from fewstep.losses.huber import pseudo_huber
from fewstep.students.context import Context
from fewstep.students.guidance import GuidedConfig, guided_model, with_scales
from fewstep.students.method import StudentMethod
from fewstep.students.noising import Noised, noised
from fewstep.training.method import Group, Rows

TARGET = "target"
HUBER = 1e-3
"""c of the pseudo-Huber loss; diffusers' LCM training scripts have the same."""


class Config(GuidedConfig):
    """Parameters of the method `lcm`."""

    method: str
    learns_from: ClassVar[tuple[str, ...]] = ("triplets", "encoded")
    grid: int = Field(50, ge=1)
    """DDIM steps of the teacher from noise to data."""
    segments: int = Field(1, ge=1)
    """1: a consistency model, sampled with fresh noise. More: PCM, sampled by a DDIM step per segment."""
    steps: int | None = Field(None, ge=1)
    """Step count of the student; null: any. A student of several segments takes one step per segment."""
    decay: float = Field(0.95, ge=0, lt=1)
    """Decay of the moving average of the student's weights that makes the targets."""

    @property
    def averages(self) -> int:
        return 1

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.grid % self.segments:
            raise ValueError(f"grid = {self.grid}: expected a multiple of segments = {self.segments}")
        if self.segments > 1 and self.steps not in (None, self.segments):
            raise ValueError(
                f"steps = {self.steps}: a student of {self.segments} segments takes as many steps"
            )
        return self


def student_of(config: Config, start: Model) -> Model:
    """The start on its own path; sampled with fresh noise, or by a DDIM step per segment."""
    if config.segments > 1:
        return replace(start, steps=config.segments)
    return replace(
        start, steps=config.steps, sampling=replace(start.sampling, solver=Solver.RENOISE, times={})
    )


@dataclass(frozen=True)
class Batch(Noised):
    """t: time of x_t `[B]`. end: of its segment `[B]`. target: the point `[B, ...]` to be reached there."""

    t: Tensor
    end: Tensor
    target: Tensor


class ConsistencyDistillation(StudentMethod):
    """Pseudo-Huber distance to the average's prediction after one teacher step; targets in float64."""

    def __init__(self, config: Config, context: Context, student: Model) -> None:
        super().__init__(config, context, student)
        self.config, self.path = config, student.denoiser.path
        self.groups = {"student": Group({"net": student.net}, config.training, {TARGET: config.decay})}
        self.frozen = (context.start.net,)
        self.teacher = guided_model(context.start, context, config.scale, config.per_sample)

    @property
    def average(self) -> Denoiser:
        """The student with the moving average of its weights."""
        net = self.groups["student"].averages[TARGET]["net"]
        return replace(self.denoiser, network=self.context.backbone.network(net, self.denoiser.inputs))

    def batch(self, rows: Rows) -> Noised:
        batch = noised(self.context, self.path, rows.positions, self.config.grid)
        conditions = with_scales(batch.conditions, self.context, self.config.guidance, rows.positions)
        return replace(batch, conditions=conditions)

    def prepare(self, batch: Noised) -> Batch:
        grid, each = self.config.grid, self.config.grid // self.config.segments
        t, s, end = (batch.i + 1) / grid, batch.i / grid, (batch.i / each).floor() * each / grid
        x_s = ddim_step(asked(self.teacher, batch.x_t, t, s, batch.conditions), self.path, s)
        reached = self.landed(self.average, x_s, s, end, batch.conditions)
        target = torch.where(expand_like(s == end, x_s).bool(), x_s, reached)
        return Batch(batch.x_t, batch.i, batch.conditions, t, end, target.float())

    def landed(self, denoise: Denoise, x: Tensor, t: Tensor, end: Tensor, conditions: Conditions) -> Tensor:
        """The point at time `end` after one DDIM step from x `[B, ...]` at t `[B]`; at 0, the x_0."""
        return ddim_step(asked(denoise, x, t, end, conditions), self.path, end)

    def losses(self, group: str, batch: Batch, step: int) -> dict[str, Tensor]:
        predicted = self.landed(self.denoiser, batch.x_t.float(), batch.t, batch.end, batch.conditions)
        return {"consistency": pseudo_huber(predicted - batch.target, HUBER)}


METHOD = ConsistencyDistillation
