"""Piecewise rectified flow (PeRFlow, Yan et al. 2024, algorithm 1): the ODE straightened window by window.

The times [0, 1] are cut into K windows. Reflow within a window needs no stored pairs: its start is clean data
with noise, and the teacher's solution from there to the window's end takes a few solver steps. The student
learns the straight line between the two, and samples in one step per window.
"""

from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from pydantic import Field, field_validator
from torch import Tensor

from fewstep.backbones.model import Model
from fewstep.core.errors import UserError
from fewstep.core.hardware import upload
from fewstep.diffusion.denoiser import Conditions, expand_like
from fewstep.diffusion.schedules import RectifiedFlow
from fewstep.diffusion.solvers import ODE_SOLVERS, Solver, asked
from fewstep.students.context import Context
from fewstep.students.guidance import GuidedConfig, guided_model, with_scales
from fewstep.students.method import StudentMethod
from fewstep.students.noising import noised_at
from fewstep.training.method import Group, Rows


class Config(GuidedConfig):
    """Parameters of the method `piecewise`."""

    method: str
    learns_from: ClassVar[tuple[str, ...]] = ("triplets", "encoded")
    windows: int = Field(4, ge=1)
    """Windows of equal length, and steps of the student."""
    solver: Solver = Solver.DDIM
    """Solver of the teacher within a window: ddim or dpm_solver_pp_2m (its first step is of first order)."""
    solver_steps: int = Field(8, ge=1)
    """Steps of the teacher in each window."""

    @field_validator("solver")
    @classmethod
    def _ode(cls, solver: Solver) -> Solver:
        if solver not in ODE_SOLVERS:
            raise ValueError(f"{solver} solves no ODE; take {' or '.join(ODE_SOLVERS)}")
        return solver


def student_of(config: Config, start: Model) -> Model:
    """The start model on the rectified-flow path, in one step per window.

    Raises UserError where the first window lies beyond the schedule of its network (SD's: 16 windows).
    """
    denoiser, windows = start.denoiser.on(RectifiedFlow()), config.windows
    if 1 - 1 / windows >= denoiser.last_time:
        last = f"the noisiest time of the network's schedule, {denoiser.last_time:.3f}"
        raise UserError(f"windows = {windows}: the first window lies beyond {last}; take fewer")
    return replace(start, denoiser=denoiser, steps=windows)


@dataclass(frozen=True)
class Window:
    """x: the point `[B, ...]` float64 at a window's start. start, end: its times `[B]`. t: `[B]` within."""

    x: Tensor
    start: Tensor
    end: Tensor
    t: Tensor
    conditions: Conditions


@dataclass(frozen=True)
class Batch:
    """x_t `[B, ...]` at t `[B]` on the line of a window that ends at `end` `[B]`, and its velocity u."""

    x_t: Tensor
    t: Tensor
    end: Tensor
    u: Tensor
    conditions: Conditions


class Piecewise(StudentMethod):
    """Regression of the velocity on the slope of the line through the teacher's solution of a window."""

    def __init__(self, config: Config, context: Context, student: Model) -> None:
        super().__init__(config, context, student)
        self.config, self.path = config, self.denoiser.path
        self.groups = {"student": Group({"net": student.net}, config.training)}
        self.frozen = (context.start.net,)
        start = replace(context.start, denoiser=context.start.denoiser.on(self.path))
        self.teacher = guided_model(start, context, config.scale, config.per_sample)

    def batch(self, rows: Rows) -> Window:
        """Random streams: `times`, `noise` and `guidance` of the training.

        Sampling starts with pure noise, which the network takes for the noisiest point of its schedule. So
        the first window starts there: at `last_time` instead of at 1.
        """
        uniform = upload(torch.from_numpy(self.context.key("times").uniform(rows.positions, 2)))
        k = (uniform[:, 0] * self.config.windows).floor() + 1
        end, start = (k - 1) / self.config.windows, k / self.config.windows
        x, conditions = noised_at(self.context, self.path, rows.positions, start)
        x, start = self.denoiser.onto_schedule(x, start)
        conditions = with_scales(conditions, self.context, self.config.guidance, rows.positions)
        return Window(x, start, end, torch.lerp(start, end, uniform[:, 1]), conditions)

    def prepare(self, batch: Window) -> Batch:
        start, end, steps = batch.start, batch.end, self.config.solver_steps
        times = [torch.lerp(start, end, i / steps) for i in range(steps + 1)]
        x_end = ODE_SOLVERS[self.config.solver](self.teacher, batch.x, times, batch.conditions, self.path)
        u = (batch.x - x_end) / expand_like(start - end, x_end)
        x_t = x_end + expand_like(batch.t - end, u) * u
        return Batch(x_t.float(), batch.t, end, u.float(), batch.conditions)

    def losses(self, group: str, batch: Batch, step: int) -> dict[str, Tensor]:
        error = asked(self.denoiser, batch.x_t, batch.t, batch.end, batch.conditions).velocity - batch.u
        return {"velocity": error.square().mean()}


METHOD = Piecewise
