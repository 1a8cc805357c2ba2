"""Flash Diffusion (Chadebec et al. 2024, "Flash Diffusion: accelerating any conditional diffusion model").

From a noised sample x_t, the student predicts in one evaluation where the guided teacher's ODE ends. A
distribution matching term and a discriminator on the frozen teacher's features are added. Training has
phases: the start of the ODE moves from low to high noise, and the two further terms gain weight.

Differences from the authors' code: start, guidance and times are drawn per sample, not per batch. The
matching term has its sample's guidance, not a second draw. The teacher's ODE is solved once per step, for
both groups. A phase is a share of the steps; their counter runs twice per step. LSGAN is that of Mao et al.
2017: no sigmoid before it, and a factor 1/2 in the student's loss. The head has a logit per position. Decoded
images are not clipped. The boundary scaling c_skip is left out; it is below 1e-5 at all starts of K = 32.
"""

from dataclasses import dataclass, replace
from functools import partial
from typing import ClassVar, Literal, Self

import torch
from pydantic import Field, field_validator, model_validator
from torch import Tensor

from fewstep.backbones.model import Model
from fewstep.config.base import Section
from fewstep.config.sampling import Scale, ScaleRange
from fewstep.config.training import OptimizerConfig
from fewstep.core.hardware import upload
from fewstep.diffusion.denoiser import Conditions, Estimate, add_noise, expand_like
from fewstep.diffusion.solvers import ODE_SOLVERS, Solver, asked, shifted, trailing
from fewstep.diffusion.staggered import solve_staggered
from fewstep.features.network import FeatureNetwork
from fewstep.losses.adversarial import LOSSES, Kind, clip_critic
from fewstep.losses.distribution_matching import distribution_matching, error_scale
from fewstep.students.config import Decode, ImageLoss
from fewstep.students.context import Context
from fewstep.students.discriminator import Features, head_on
from fewstep.students.guidance import GuidedConfig, guided_model, with_scales
from fewstep.students.method import StudentMethod
from fewstep.students.perceptual import centre, distance_of_images, open_maps
from fewstep.training.method import Group, Rows

TIMES = (0.01, 0.25, 0.5, 0.75)
"""Times at which the discriminator's samples are noised."""
SMALLEST = 1e-5
"""Added to the scale of the matching gradient."""


class Phase(Section):
    """One phase of the training. Defaults of `Config.phases`: the paper's four."""

    share: float = Field(1.0, gt=0)
    """Length, relative to the sum of all phases' shares of `training.steps`."""
    modes: tuple[float, ...] = Field(min_length=1)
    """Weights of the start times, of equal distances, from pure noise to low noise."""
    distance: float = Field(1.0, ge=0)
    """Weight of the distance to the teacher's end point."""
    matching: float = Field(0.0, ge=0)
    """Weight of the distribution matching term."""
    adversarial: float = Field(0.0, ge=0)
    """Weight of the student's adversarial loss."""

    @field_validator("modes")
    @classmethod
    def _probabilities(cls, modes: tuple[float, ...]) -> tuple[float, ...]:
        if min(modes) < 0 or sum(modes) == 0:
            raise ValueError("weights of modes have to be at least 0, and one above 0")
        return modes


PHASES = (
    Phase(modes=(0.0, 0.0, 0.5, 0.5)),
    Phase(modes=(0.1, 0.3, 0.3, 0.3), matching=0.3, adversarial=0.1),
    Phase(modes=(0.25, 0.25, 0.25, 0.25), matching=0.5, adversarial=0.2),
    Phase(modes=(0.4, 0.2, 0.2, 0.2), matching=0.7, adversarial=0.3),
)


class Config(GuidedConfig):
    """Parameters of the method `flash`. Defaults are those of the authors' Stable Diffusion 1.5."""

    method: str
    learns_from: ClassVar[tuple[str, ...]] = ("triplets", "encoded")
    guidance: Scale | ScaleRange = (3.0, 13.0)
    """Guidance scale of the teacher; a range: drawn per sample. See `GuidedConfig`."""
    steps: int | None = Field(None, ge=1)
    """Step count of the student, a divisor of the number of modes; null: any."""
    grid: int = Field(32, ge=1)
    """K, steps of the teacher from noise to data; a multiple of the number of modes."""
    solver: Solver = Solver.DPM_SOLVER_PP_2M
    """Solver of the teacher's ODE."""
    shift: float = Field(1.0, gt=0)
    """Of the times of teacher and student, see `solvers.shifted`; SD3: 3."""
    phases: tuple[Phase, ...] = Field(PHASES, min_length=1)
    """In order; the student is sampled at the mode times of the last one."""
    width: float = Field(0.5, gt=0)
    """A start index i has the weight `exp(-(i - m)^2 / width)` of a mode at index m."""
    distance: Literal["l2", "l1", "perceptual"] = "perceptual"
    """perceptual: of decoded images, in the maps of the feature network."""
    crop: int | None = Field(64, ge=1)
    """Side of the centre of the latents that is decoded for the perceptual distance; null: all."""
    adversarial: Kind = "lsgan"
    """Adversarial loss; LSGAN is the best in the paper's ablation."""
    real: Literal["data", "teacher"] = "data"
    """Real samples of the discriminator: clean samples, or the teacher's end points."""
    discriminator: OptimizerConfig = OptimizerConfig(learning_rate=1e-5, decay="constant", weight_decay=0.01)
    """Optimizer of the discriminator; unused where no phase has an adversarial weight."""

    @property
    def needs_feature_maps(self) -> bool:
        return self.distance == "perceptual"

    @property
    def image_loss(self) -> ImageLoss | None:
        return partial(image_terms, self.crop) if self.distance == "perceptual" else None

    @property
    def gradient_passes(self) -> int:
        return 1 + any(phase.adversarial for phase in self.phases)

    @property
    def times(self) -> list[float]:
        """The `grid + 1` times of the teacher's steps, from 1 to 0."""
        return shifted(trailing(self.grid), self.shift)

    def phase(self, step: int) -> Phase:
        """The phase at a step of the training, counted from 0."""
        total, end = sum(phase.share for phase in self.phases), 0.0
        for phase in self.phases:
            end += phase.share
            if step * total < self.training.steps * end:
                return phase
        return self.phases[-1]

    def start_probabilities(self, phase: Phase) -> Tensor:
        """`P(i)` of the start indices `[grid]`, a mixture around m K / M for the M modes."""
        i, each = torch.arange(self.grid, dtype=torch.float64), self.grid // len(phase.modes)
        near = [w * torch.exp(-((i - m * each) ** 2) / self.width) for m, w in enumerate(phase.modes)]
        weights = torch.stack(near).sum(0)
        return weights / weights.sum()

    @field_validator("solver")
    @classmethod
    def _ode(cls, solver: Solver) -> Solver:
        if solver not in ODE_SOLVERS:
            raise ValueError(f"{solver} solves no ODE; choose one of {', '.join(ODE_SOLVERS)}")
        return solver

    @model_validator(mode="after")
    def _fits(self) -> Self:
        for phase in self.phases:
            if self.grid % len(phase.modes):
                raise ValueError(f"grid = {self.grid}: not a multiple of {len(phase.modes)} modes")
        modes = len(self.phases[-1].modes)
        if self.steps is not None and modes % self.steps:
            raise ValueError(f"steps = {self.steps}: the student is trained at {modes} times; take a divisor")
        return self


def student_of(config: Config, start: Model) -> Model:
    """The start on its own path, sampled at the times at which it is trained, with fresh noise."""
    counts = () if config.shift == 1 else range(1, config.grid + 1)
    times = {n: tuple(shifted(trailing(n), config.shift)) for n in counts}
    sampling = replace(start.sampling, solver=Solver.RENOISE, times=times)
    return replace(start, steps=config.steps, sampling=sampling)


@dataclass(frozen=True)
class Batch:
    """A step's samples; target: set by `prepare`.

    z, conditions: clean samples `[B, ...]` and their prompts. x_t, t: noised samples and their times `[B]`,
    where student and teacher start. eps: noise of x_t, of the matching term and of the discriminator,
    `[3, B, ...]`. uniform: of their times, `[B, 2]`. target: end points of the teacher. z, x_t, t, eps are
    float64.
    """

    z: Tensor
    conditions: Conditions
    x_t: Tensor
    t: Tensor
    eps: Tensor
    uniform: Tensor
    target: Tensor


class Flash(StudentMethod):
    """Distance to the teacher's end point, distribution matching and an adversarial loss."""

    def __init__(self, config: Config, context: Context, student: Model) -> None:
        super().__init__(config, context, student)
        self.config, self.path = config, student.denoiser.path
        self.teacher = guided_model(context.start, context, config.scale, config.per_sample)
        self.groups = {"student": Group({"net": student.net}, config.training)}
        self.frozen = (context.start.net,)
        if any(phase.adversarial for phase in config.phases):
            self.features_of_teacher = Features(context.start.net, context.start.denoiser)
            self.head = head_on(self.features_of_teacher, *context.clean_batch([0]), context.key("head"))
            self.groups["discriminator"] = Group({"head": self.head}, config.discriminator)
        if config.distance == "perceptual":
            self.frozen = (*self.frozen, context.backbone.decoder())
            self.maps = open_maps(context)

    def batch(self, rows: Rows) -> Batch:
        config, context, positions = self.config, self.context, rows.positions
        z, conditions = context.clean_batch(positions)
        z, conditions = z.double(), with_scales(conditions, context, config.guidance, positions)
        uniform = upload(torch.from_numpy(context.key("times").uniform(positions, 3)))
        cumulated = upload(config.start_probabilities(config.phase(rows.step)).cumsum(0)).to(z.dtype)
        i = torch.searchsorted(cumulated, uniform[:, 0].contiguous(), right=True).clamp(max=config.grid - 1)
        t = upload(torch.tensor(config.times, dtype=torch.float64))[i]
        keys = context.key("noise/start"), context.key("noise/matching"), context.key("noise/adversarial")
        drawn = [torch.from_numpy(key.normal(positions, z.shape[1:])) for key in keys]
        eps = upload(torch.stack(drawn)).to(z.dtype)
        pure = expand_like(self.path.scale(t), z) * eps[0]
        x_t = torch.where(expand_like(i == 0, z).bool(), pure, add_noise(self.path, z, eps[0], t))
        return Batch(z, conditions, x_t, t, eps, uniform[:, 1:], target=z)

    def prepare(self, batch: Batch) -> Batch:
        """Solve the teacher's ODE for all samples, each from its own time."""
        target = solve_staggered(
            self.config.solver,
            self.teacher,
            batch.x_t,
            batch.t,
            Estimate(batch.z, batch.eps[0]),
            self.config.times,
            batch.conditions,
            self.path,
        )
        return replace(batch, target=target.float())

    def losses(self, group: str, batch: Batch, step: int) -> dict[str, Tensor]:
        config, phase = self.config, self.config.phase(step)
        if group == "discriminator":
            with torch.no_grad():
                drawn = self.features(self.predicted(batch), batch)
                real = self.features(batch.z if config.real == "data" else batch.target, batch)
            loss = LOSSES[config.adversarial].discriminator(self.head(real), self.head(drawn))
            return {"discriminator": loss}
        f = self.predicted(batch)
        terms = {"distance": phase.distance * self.distance(f, batch.target)}
        if phase.matching > 0:
            terms["matching"] = phase.matching * self.matching(f, batch)
        if phase.adversarial > 0:
            logits = self.head(self.features(f, batch))
            terms["adversarial"] = phase.adversarial * LOSSES[config.adversarial].generator(logits)
        return terms

    def predicted(self, batch: Batch) -> Tensor:
        """The student's x_0 at x_t, `[B, ...]` float32."""
        end = torch.zeros_like(batch.t)
        return asked(self.denoiser, batch.x_t.float(), batch.t, end, batch.conditions).x_0

    def distance(self, f: Tensor, target: Tensor) -> Tensor:
        """d(f, target), mean over samples."""
        if self.config.distance == "perceptual":
            decode = self.context.backbone.decode
            return image_terms(self.config.crop, f, target, decode, self.maps)["distance"]
        error = f - target
        return error.square().mean() if self.config.distance == "l2" else error.abs().mean()

    @torch.no_grad()
    def gradient(self, f: Tensor, batch: Batch) -> Tensor:
        """`(x_0^fake - x_0^real) / (mean|f - x_0^real| + 1e-5)`, the fake being the student itself."""
        tau = batch.uniform[:, 0]
        x_tau, end = add_noise(self.path, f.double(), batch.eps[1], tau), torch.zeros_like(tau)
        real = asked(self.teacher, x_tau, tau, end, batch.conditions).x_0
        fake = asked(self.denoiser, x_tau, tau, end, batch.conditions).x_0
        return (fake - real) / (error_scale(f.double(), real, 0.0) + SMALLEST)

    def matching(self, f: Tensor, batch: Batch) -> Tensor:
        """`||f - sg(f - g)||^2`, mean over elements: twice that of DMD (Yin et al. 2024, eq. 8)."""
        return 2 * distribution_matching(f, self.gradient(f, batch))

    def features(self, x: Tensor, batch: Batch) -> Tensor:
        """The frozen teacher's features of x noised at one of `TIMES`."""
        times = torch.tensor(TIMES, dtype=torch.float64, device=x.device)
        t = times[(batch.uniform[:, 1] * len(TIMES)).long()]
        return self.features_of_teacher(
            add_noise(self.path, x.double(), batch.eps[2], t).float(), t, batch.conditions
        )

    def updated(self, group: str) -> None:
        if group == "discriminator":
            clip_critic(self.config.adversarial, self.head)


METHOD = Flash


def image_terms(
    crop: int | None, f: Tensor, target: Tensor, decode: Decode, features: FeatureNetwork | None
) -> dict[str, Tensor]:
    """Perceptual distance of the images of the centres of latents f, target `[B, C, h, w]`."""
    assert features is not None, "a perceptual distance needs a feature network"
    return {"distance": distance_of_images(centre(f, crop), centre(target, crop), decode, features)}
