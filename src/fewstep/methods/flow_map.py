"""Flow map distillation: one model for any number of steps.

MeanFlow (Geng et al. 2025) with a teacher's velocity, and the loss of "Align your flow" (AYF, Sabour et al.
2025). The student learns the mean velocity of the teacher's ODE from t to r,

    u(x_t, t, r) = 1 / (t - r) int_r^t v(x_s, s) ds,        x_r = x_t - (t - r) u(x_t, t, r),

on the rectified-flow path. Differentiated in t along the ODE, this is the MeanFlow identity (Geng et al., eq.
6), which needs no solution of the ODE: `u = v - (t - r) du/dt`.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import ClassVar, Literal, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from fewstep.backbones.model import Model
from fewstep.core.hardware import full_precision, upload
from fewstep.diffusion.denoiser import END_TIME, Conditions, expand_like
from fewstep.diffusion.schedules import RectifiedFlow
from fewstep.diffusion.solvers import asked
from fewstep.diffusion.times import EDGE, Times, times_from
from fewstep.students.context import Context
from fewstep.students.guidance import GuidedConfig, guided_model, with_scales
from fewstep.students.method import StudentMethod
from fewstep.students.noising import noised_at
from fewstep.training.method import Group, Rows

H = 5e-3
"""Half the width of the central difference, in time."""
C = 0.1
"""c of the tangent's normalisation (Lu & Song 2024, section 4.2)."""

Velocity = Callable[[Tensor, Tensor], Tensor]
"""(x [B, ...], t [B]) -> u(x, t, r) for a fixed r."""


class Config(GuidedConfig):
    """Parameters of the method `flow_map`."""

    method: str
    learns_from: ClassVar[tuple[str, ...]] = ("triplets", "encoded")
    takes: ClassVar[tuple[str, ...]] = (END_TIME,)
    full_precision: ClassVar[bool] = True
    steps: int | None = Field(None, ge=1)
    """Step count of the student; null: any."""
    times: Times = Times.UNIFORM
    """Density of t: uniform or u_shaped."""
    share_r_t: float = Field(0.5, ge=0, le=1)
    """Share of the samples with r = t, which learn the teacher's velocity itself."""
    share_r_0: float = Field(0.25, ge=0, le=1)
    """Share of the samples with r = 0, which learn the step to data. For others r is uniform in [0, t]."""
    derivative: Literal["central", "jvp"] = "central"
    """central: du/dt as a difference of two evaluations 0.01 apart, under any attention kernel. jvp: exact,
    by forward-mode differentiation. They differ where the time embedding oscillates within 0.01: the
    difference averages that, the derivative amplifies it (Lu & Song 2024, section 4.1). Compiled and
    FSDP-sharded networks may have no forward-mode derivative."""
    warmup_tangent: int = Field(2000, ge=0)
    """Steps over which the term `(t - r) du/dt` grows linearly from 0 to its full size; 0: full at once."""

    @model_validator(mode="after")
    def _shares(self) -> Self:
        if (total := self.share_r_t + self.share_r_0) > 1:
            raise ValueError(f"share_r_t + share_r_0 = {total:g}: expected at most 1")
        return self


def student_of(config: Config, start: Model) -> Model:
    """The start model on the rectified-flow path, with the end of each step as an input."""
    return replace(start, denoiser=start.denoiser.on(RectifiedFlow()), steps=config.steps)


@dataclass(frozen=True)
class Points:
    """x_t `[B, ...]` float64 at t `[B]`, the end r <= t `[B]` of its step, and conditions."""

    x_t: Tensor
    t: Tensor
    r: Tensor
    conditions: Conditions


@dataclass(frozen=True)
class Batch(Points):
    """v: the teacher's velocity `[B, ...]` at x_t. change: `(t - r) du/dt` `[B, ...]` of the student."""

    v: Tensor
    change: Tensor


class FlowMap(StudentMethod):
    """Regression on `u + tangent`, tangent = `v - (t - r) du/dt - u` normalised per sample."""

    def __init__(self, config: Config, context: Context, student: Model) -> None:
        super().__init__(config, context, student)
        self.config, self.full_precision = config, config.full_precision
        self.groups = {"student": Group({"net": student.net}, config.training)}
        self.frozen = (context.start.net,)
        start = replace(context.start, denoiser=context.start.denoiser.on(self.denoiser.path))
        self.teacher = guided_model(start, context, config.scale, config.per_sample)

    def batch(self, rows: Rows) -> Points:
        """Random streams: `times`, `noise` and `guidance` of the training.

        Points beyond the schedule of the student's network, such as pure noise, become its noisiest one, as
        in sampling.
        """
        uniform = upload(torch.from_numpy(self.context.key("times").uniform(rows.positions, 4)))
        t = times_from(self.config.times, uniform[:, :2])
        x_t, conditions = noised_at(self.context, self.denoiser.path, rows.positions, t)
        x_t, t = self.denoiser.onto_schedule(x_t, t)
        r = self.ends(t, uniform[:, 2], uniform[:, 3])
        conditions = with_scales(conditions, self.context, self.config.guidance, rows.positions)
        return Points(x_t, t, r, conditions)

    def ends(self, t: Tensor, kind: Tensor, share: Tensor) -> Tensor:
        """r `[B]` for t `[B]`; kind, share: uniform in [0, 1) `[B]`."""
        instant, whole = self.config.share_r_t, self.config.share_r_t + self.config.share_r_0
        return torch.where(kind < instant, t, torch.where(kind < whole, 0.0, share * t))

    def prepare(self, batch: Points) -> Batch:
        x_t, t, r = batch.x_t, batch.t, batch.r
        v = asked(self.teacher, x_t, t, t, batch.conditions).velocity

        def u(x: Tensor, at: Tensor) -> Tensor:
            return asked(self.denoiser, x, at, r, batch.conditions).velocity

        # In float32: a difference of velocities in bfloat16 would consist of rounding errors.
        with full_precision():
            if self.config.derivative == "jvp":
                change = derivative(u, x_t, t, v)
            else:
                change = central_difference(u, x_t, t, v, r, self.denoiser.last_time)
        change = expand_like(t - r, x_t) * change
        return Batch(x_t, t, r, batch.conditions, v.float(), change.float())

    def losses(self, group: str, batch: Batch, step: int) -> dict[str, Tensor]:
        u = asked(self.denoiser, batch.x_t.float(), batch.t, batch.r, batch.conditions).velocity
        warmup = self.config.warmup_tangent
        grown = min(step / warmup, 1.0) if warmup else 1.0
        tangent = normalised(batch.v - u.detach() - grown * batch.change)
        return {"velocity": (u - (u.detach() + tangent)).square().mean()}


METHOD = FlowMap


def normalised(tangent: Tensor) -> Tensor:
    """`g / (||g|| + c)` per sample, g `[B, ...]` (Lu & Song 2024, section 4.2; AYF).

    ||g|| is the root mean square over the sample's elements, so that resolutions compare.
    """
    norm = tangent.flatten(1).square().mean(1).sqrt()
    return tangent / expand_like(norm + C, tangent)


def central_difference(u: Velocity, x: Tensor, t: Tensor, v: Tensor, r: Tensor, last: float) -> Tensor:
    """`du/dt = (u(x + h v, t + h) - u(x - h v, t - h)) / 2h` `[B, ...]`, exact for u linear in x and t.

    x, v: `[B, ...]` float64. t, r: `[B]`, r <= t <= last. Times stay within [r, last], where the student is
    trained: near either end the difference is shorter on that side, and of first order only. 0 at t = r =
    last, where no time is left (and `(t - r) du/dt` is 0).
    """
    before = (t - H).clamp(min=EDGE).maximum(r).minimum(t)
    after = (t + H).clamp(max=last)
    there, back = (u(x + expand_like(s - t, x) * v, s) for s in (after, before))
    width = after - before
    return (there - back) / expand_like(torch.where(width > 0, width, torch.inf), x)


def derivative(u: Velocity, x: Tensor, t: Tensor, v: Tensor) -> Tensor:
    """`du/dt = v d_x u + d_t u` `[B, ...]`; no fused attention kernel has forward-mode derivatives."""
    with sdpa_kernel(SDPBackend.MATH):
        change: Tensor = torch.func.jvp(u, (x, t), (v, torch.ones_like(t)))[1]
    return change
