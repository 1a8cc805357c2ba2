"""Base of the methods that train a student by the scores of two denoisers: the teacher and a fake.

The fake is a copy of the teacher, trained on the student's samples. It is updated at every step, the student
at every `student_every`-th. With `lora`, student and fake are adapters; all three networks share one copy of
the base weights where the student starts from the teacher.
"""

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from pydantic import Field, model_validator
from torch import Tensor

from fewstep.backbones.model import Model
from fewstep.config.training import OptimizerConfig
from fewstep.core.hardware import upload
from fewstep.core.keyed import Key
from fewstep.diffusion.denoiser import (
    GUIDANCE,
    Conditions,
    Denoise,
    Denoiser,
    Estimate,
    add_noise,
    expand_like,
    from_estimate,
)
from fewstep.diffusion.schedules import Schedule
from fewstep.diffusion.solvers import Solver, asked, at, trailing
from fewstep.students.context import Context
from fewstep.students.guidance import GuidedConfig, guided_model, with_scales
from fewstep.students.method import StudentMethod
from fewstep.students.start import to_train, with_net
from fewstep.training.method import Group, Rows


class ScoreConfig(GuidedConfig):
    """Parameters of these methods."""

    method: str
    learns_from: ClassVar[tuple[str, ...]] = ("triplets", "encoded")
    """Of triplets only the prompts are used, and x_0 as real samples where a discriminator needs some."""
    steps: int = Field(1, ge=1)
    """Steps of the student."""
    first_time: float = Field(1.0, gt=0, le=1)
    """Time at which the student receives pure noise; its later steps are equally spaced from there to 0.
    SiD takes 0.625 and DMD2's one-step SDXL 0.4: a denoiser's output at 1 is nearly constant."""
    fake: OptimizerConfig
    """Optimizer of the fake."""
    student_every: int = Field(5, ge=1)
    """Updates of the fake per update of the student; `training.steps` counts updates of the fake."""
    earliest: float = Field(0.02, ge=0, lt=1)
    """Least time of the teacher's schedule at which the student's samples are noised for its update."""
    latest: float = Field(0.98, gt=0, le=1)
    """Largest such time; in between it is uniform."""

    @model_validator(mode="after")
    def _ordered(self) -> "ScoreConfig":
        if self.earliest >= self.latest:
            raise ValueError(f"earliest = {self.earliest}: has to be below latest = {self.latest}")
        return self

    @property
    def evaluates_start(self) -> bool:
        return self.from_ == "teacher"

    @property
    def further_networks(self) -> tuple[OptimizerConfig, ...]:
        return (self.fake,)

    @property
    def times(self) -> list[float]:
        """The `steps + 1` times of the student's steps, from `first_time` to 0."""
        return [self.first_time * t for t in trailing(self.steps)]


def few_step(config: ScoreConfig, start: Model, solver: Solver = Solver.RENOISE) -> Model:
    """The start on its own path, in `steps` steps; by default with fresh noise between them."""
    times = {} if config.first_time == 1 else {config.steps: tuple(config.times)}
    sampling = replace(start.sampling, solver=solver, times=times)
    return replace(start, steps=config.steps, sampling=sampling)


@dataclass(frozen=True)
class Batch:
    """A step's random numbers; and the student's input and sample, set by `prepare`.

    real, conditions: clean samples `[B, ...]` and their prompts. noise: `[exit + 1, B, ...]`, of the first
    step and of each later one. times: the times of the student's and of the fake's update, uniform in [0, 1),
    and one more, `[B, 3]`. eps: the noise of both updates, `[2, B, ...]`.
    """

    real: Tensor
    conditions: Conditions
    noise: Tensor
    times: Tensor
    eps: Tensor
    x_t: Tensor
    """The input of the student's step `exit`, float64."""
    t: Tensor
    """Its time `[B]`."""
    s: Tensor
    """Time `[B]` at which the step ends; 0 where the student predicts x_0 and fresh noise follows."""
    x: Tensor
    """The student's sample at s, float64, without gradient."""


class ScoreDistillation(StudentMethod):
    """Student and fake; a method says how the student is updated.

    real: the teacher's estimate with guidance. fake: the denoiser that is trained on the student's samples.
    Both are evaluated on `scores`, the teacher's own path.
    """

    def __init__(self, config: ScoreConfig, context: Context, student: Model) -> None:
        super().__init__(config, context, student)
        self.config, self.path = config, student.denoiser.path
        self.teacher = context.teacher
        self.scores: Schedule = self.teacher.denoiser.path
        self.real: Denoise = guided_model(self.teacher, context, config.scale, config.per_sample)
        self.fake = fake_of(self.teacher, config, context)
        self.fake_estimate: Denoise = self.fake.denoiser
        self.groups = {
            "fake": Group({"net": self.fake.net}, config.fake),
            "student": Group({"net": student.net}, config.training),
        }
        self.frozen = (self.teacher.net,)

    def schedule(self, step: int) -> Sequence[str]:
        return ("fake", "student") if step % self.config.student_every == 0 else ("fake",)

    def exit(self, step: int) -> int:
        """Index of the student's step whose output is trained; the same in all processes."""
        return int(self.context.key("exit").uniform([step])[0, 0] * self.config.steps)

    def batch(self, rows: Rows) -> Batch:
        context, positions = self.context, rows.positions
        real, conditions = context.clean_batch(positions)

        def normal(key: Key) -> Tensor:
            return upload(torch.from_numpy(key.normal(positions, real.shape[1:]))).double()

        steps = range(self.exit(rows.step) + 1)
        noise = torch.stack([normal(context.key(f"scores/noise/{j}")) for j in steps])
        times = upload(torch.from_numpy(context.key("scores/times").uniform(positions, 3)))
        eps = torch.stack([normal(context.key("scores/student")), normal(context.key("scores/fake"))])
        conditions = with_scales(conditions, context, self.config.guidance, positions)
        x_t, t = self.first_input(noise[0])
        return Batch(real, conditions, noise, times, eps, x_t, t, torch.zeros_like(t), x_t)

    def first_input(self, noise: Tensor) -> tuple[Tensor, Tensor]:
        """(x_t, t) of the student's first step from noise `[B, ...]`."""
        t = at(self.config.first_time, noise)
        return noise * expand_like(self.path.scale(t), noise), t

    def prepare(self, batch: Batch) -> Batch:
        """Backward simulation: the inputs of later steps are the student's own (DMD2, section 4.4)."""
        x_t, t, s = batch.x_t, batch.t, batch.s
        for time, fresh in zip(self.config.times[1:], batch.noise[1:], strict=False):
            x_0 = self.estimate(x_t, t, s, batch.conditions).x_0.double()
            t = at(time, x_0)
            x_t = add_noise(self.path, x_0, fresh, t)
        x = self.estimate(x_t, t, s, batch.conditions).x_0.double()
        return replace(batch, x_t=x_t, t=t, x=x)

    def estimate(self, x_t: Tensor, t: Tensor, s: Tensor, conditions: Conditions) -> Estimate:
        """The student's estimate at t `[B]` for a step that ends at s `[B]`, float32."""
        return asked(self.denoiser, x_t.float(), t, s, conditions)

    def losses(self, group: str, batch: Batch, step: int) -> dict[str, Tensor]:
        if group == "student":
            x_0 = self.estimate(batch.x_t, batch.t, batch.s, batch.conditions).x_0
            return self.student_losses(x_0, batch)
        return self.fake_losses(batch)

    def fake_losses(self, batch: Batch) -> dict[str, Tensor]:
        """The teacher's own regression on the student's samples, over all times."""
        tau, eps = batch.times[:, 1], batch.eps[1]
        estimate = self.fake_estimate(
            add_noise(self.scores, batch.x, eps, tau).float(), tau, batch.conditions
        )
        target = Estimate(batch.x.float(), eps.float())
        return {"denoising": prediction_error(self.fake.denoiser, estimate, target, tau).square().mean()}

    @abstractmethod
    def student_losses(self, x: Tensor, batch: Batch) -> dict[str, Tensor]:
        """Terms of the student's loss for its estimate x of x_0 `[B, ...]`."""

    def noised(self, x: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
        """(x_tau, tau) for the student's update, float64: x noised at a time in [earliest, latest]."""
        low, high = self.config.earliest, self.config.latest
        tau = low + (high - low) * batch.times[:, 0]
        return add_noise(self.scores, x.double(), batch.eps[0], tau), tau


def fake_of(teacher: Model, config: ScoreConfig, context: Context) -> Model:
    """The fake before training, equal to the teacher: a copy of its network, or an adapter on its weights.

    It takes guidance where the student does, because the student's samples then depend on it.
    """
    more = (GUIDANCE,) if config.guidance_embedding else ()
    seed = context.key("fake").seed32(0)
    net = to_train(teacher.net, more, context.backbone, config.lora, seed)
    return with_net(teacher, net, context.backbone, (*teacher.denoiser.inputs, *more))


def prediction_error(denoiser: Denoiser, estimate: Estimate, target: Estimate, t: Tensor) -> Tensor:
    """Error `[B, ...]` of an estimate, in what the network predicts (eps, v, velocity ...)."""
    alpha, sigma = denoiser.own_alpha_sigma(t)
    raw, wanted = (from_estimate(each, alpha, sigma, denoiser.prediction) for each in (estimate, target))
    return raw - wanted
