"""Progressive distillation: N student steps learn 2N teacher steps (Salimans & Ho 2022, algorithm 2).

A step is learned at `x_t = alpha x_0 + sigma eps`. The paper takes x_0 from the data (`data: encoded`) and
eps from N(0, I), independently. Here x_0 may also be the teacher's end point (`data: triplets`); eps is
fresh as in the paper. A reflow model was trained on other x_t, those of coupled pairs (eps, x_0). After
reflow the triplet's own noise was tried as well: on two seeds no consistent gain either way was measured.
Fresh noise is kept because it works for every start model, and for real images, which have no stored noise.
"""

from dataclasses import dataclass, replace
from typing import ClassVar, Literal

from pydantic import Field
from torch import Tensor

from fewstep.backbones.model import Model
from fewstep.diffusion.denoiser import expand_like
from fewstep.diffusion.halving import halving_target, snr_plus_one, truncated_snr
from fewstep.diffusion.solvers import asked
from fewstep.students.config import MethodConfig
from fewstep.students.context import Context
from fewstep.students.guidance import guided_model
from fewstep.students.method import StudentMethod
from fewstep.students.noising import Noised, noised
from fewstep.training.method import Group, Rows

WEIGHTS = {"truncated_snr": truncated_snr, "snr_plus_one": snr_plus_one}


class Config(MethodConfig):
    """Parameters of a `halve` round."""

    steps: int = Field(ge=1)
    """Steps of the student; the model it starts from is run at twice as many."""
    learns_from: ClassVar[tuple[str, ...]] = ("triplets", "encoded")
    """The paper learns from real images, `encoded`."""
    weight: Literal["truncated_snr", "snr_plus_one"] = "truncated_snr"
    guidance: float = Field(1.0, ge=0)
    """Guidance baked into the teacher's steps, with `sampling.negative_prompt`; 1: none."""


def student_of(config: Config, start: Model) -> Model:
    """The start model on its own path, with this round's step count."""
    return replace(start, steps=config.steps)


@dataclass(frozen=True)
class Batch(Noised):
    """target: the x_0 `[B, ...]` to be learned at x_t."""

    target: Tensor


class Halve(StudentMethod):
    """x-space regression; targets in float64, unclipped."""

    def __init__(self, config: Config, context: Context, student: Model) -> None:
        super().__init__(config, context, student)
        self.config = config
        self.path = student.denoiser.path
        self.groups = {"student": Group({"net": student.net}, config.training)}
        self.frozen = (context.start.net,)
        self.teacher = guided_model(context.start, context, config.guidance, config.guidance_embedding)

    def batch(self, rows: Rows) -> Noised:
        return noised(self.context, self.path, rows.positions, self.config.steps)

    def prepare(self, batch: Noised) -> Batch:
        target = halving_target(
            self.teacher, batch.x_t, batch.i, self.config.steps, batch.conditions, self.denoiser
        )
        return Batch(batch.x_t, batch.i, batch.conditions, target.float())

    def losses(self, group: str, batch: Batch, step: int) -> dict[str, Tensor]:
        t = (batch.i + 1) / self.config.steps
        end = batch.i / self.config.steps
        estimate = asked(self.denoiser, batch.x_t.float(), t, end, batch.conditions)
        error = estimate.x_0 - batch.target
        weight = WEIGHTS[self.config.weight](*self.path.alpha_sigma(t))
        return {"x_0": (expand_like(weight, error) * error.square()).mean()}


METHOD = Halve
