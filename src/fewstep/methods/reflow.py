"""Text-conditioned reflow: straighten the teacher's ODE on its own (noise, image) pairs.

Liu et al. 2022 ("Flow straight and fast", eq. 1), InstaFlow (Liu et al. 2023) for `plain`, Lee et al. 2024
("Improving the training of rectified flows") for `improved`.
"""

import math
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from fewstep.backbones.model import Model
from fewstep.core.hardware import upload
from fewstep.data.triplets import TripletBatch
from fewstep.diffusion.denoiser import Denoise, Denoiser, Prediction, expand_like
from fewstep.diffusion.schedules import RectifiedFlow
from fewstep.diffusion.solvers import asked
from fewstep.diffusion.times import Times, times_from
from fewstep.students.config import MethodConfig
from fewstep.students.context import Context
from fewstep.students.method import StudentMethod
from fewstep.training.method import Group, Rows

HUBER = 0.00054
"""c of the pseudo-Huber loss per element (Lee et al. 2024)."""


class Config(MethodConfig):
    """Parameters of `reflow`."""

    init: Literal["exact", "raw"] = "exact"
    """exact: the start's output is converted to a velocity. raw: its weights are retrained to predict one."""
    loss: Literal["improved", "plain"] = "improved"
    """improved: U-shaped times, pseudo-Huber. plain: uniform times, L2."""

    @property
    def evaluates_start(self) -> bool:
        return False


def student_of(config: Config, start: Model) -> Model:
    """The start model on the rectified-flow path, for any number of steps."""
    flow = RectifiedFlow()
    denoiser = start.denoiser.on(flow)
    if config.init == "raw":
        denoiser = replace(denoiser, schedule=flow, prediction=Prediction.FLOW)
    return replace(start, denoiser=denoiser, steps=None)


@dataclass(frozen=True)
class Batch:
    """Triplets and the times t `[B]` of the points on their straight lines."""

    triplets: TripletBatch
    t: Tensor


class Reflow(StudentMethod):
    """Regress the velocity on `eps - x_0` of the pairs."""

    def __init__(self, config: Config, context: Context, student: Model) -> None:
        super().__init__(config, context, student)
        self.config = config
        self.groups = {"student": Group({"net": student.net}, config.training)}
        self.times = context.key("times")

    def batch(self, rows: Rows) -> Batch:
        uniform = torch.from_numpy(self.times.uniform(rows.positions, 2))
        kind = Times.U_SHAPED if self.config.loss == "improved" else Times.UNIFORM
        pairs, t = self.context.triplet_batch(rows.positions), upload(times_from(kind, uniform))
        return Batch(*on_the_students_line(self.denoiser, pairs, t))

    def losses(self, group: str, batch: Batch, step: int) -> dict[str, Tensor]:
        error = velocity_error(self.denoiser, batch.triplets, batch.t)
        return {"velocity": pseudo_huber(error) if self.config.loss == "improved" else error.square().mean()}


METHOD = Reflow


def on_the_students_line(denoiser: Denoiser, pairs: TripletBatch, t: Tensor) -> tuple[TripletBatch, Tensor]:
    """The pairs and times for a student whose schedule may end before pure noise, where sampling starts.

    Its network takes pure noise for `x_T = a x_0 + s eps`, the noisiest point of its schedule (SD: a =
    0.068). So the line that its steps follow ends in `(x_T - a x_0) / s`, which replaces eps. A time beyond
    the schedule is clamped to its noisiest one. Where the schedule ends in pure noise, nothing changes.
    """
    end = torch.ones(1, dtype=torch.float64, device=t.device)
    alpha, sigma = denoiser.own_alpha_sigma(end)
    eps = ((pairs.eps.double() - alpha * pairs.x_0) / sigma).to(pairs.eps)
    return replace(pairs, eps=eps), t.clamp(max=denoiser.last_time)


def velocity_error(denoise: Denoise, pairs: TripletBatch, t: Tensor) -> Tensor:
    """`u(x_t, t) - (eps - x_0)` at `x_t = (1 - t) x_0 + t eps`, `[B, ...]`."""
    x_t = torch.lerp(pairs.x_0, pairs.eps, expand_like(t, pairs.x_0))
    return asked(denoise, x_t, t, t, pairs.conditions).velocity - (pairs.eps - pairs.x_0)


def pseudo_huber(error: Tensor) -> Tensor:
    """`(sqrt(||d||^2 + c^2) - c) / dim`, mean over the batch; c = 0.00054 dim."""
    dim = math.prod(error.shape[1:])
    c = HUBER * dim
    return ((error.flatten(1).square().sum(1) + c**2).sqrt() - c).mean() / dim
