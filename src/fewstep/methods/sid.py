"""Score identity distillation (Zhou et al. 2024, "SiD"; with guidance: "SiD-LSG").

The same student, teacher and fake as in `dmd2`. The student's loss is a form of the Fisher divergence of both
distributions; its gradient passes through the teacher and the fake. No real images are used.
"""

from pydantic import Field
from torch import Tensor

from fewstep.backbones.model import Model
from fewstep.losses.distribution_matching import score_identity
from fewstep.students.context import Context
from fewstep.students.guidance import guided_model
from fewstep.students.scores import Batch, ScoreConfig, ScoreDistillation, few_step


class Config(ScoreConfig):
    """Parameters of the method `sid`. Published: 1:1 updates, guidance 1.5 to 4.5, `first_time` 0.625."""

    student_every: int = Field(1, ge=1)
    """Updates of the fake per update of the student."""
    alpha: float = 1.0
    """Weight of the squared difference of the denoisers."""

    @property
    def gradient_passes(self) -> int:
        guided = self.per_sample or self.scale != 1
        return 5 if guided else 3


student_of = few_step


class ScoreIdentity(ScoreDistillation):
    """`(D_T - D_F) . ((D_T - x) - alpha (D_T - D_F)) / mean|x - D_T|`."""

    config: Config

    def __init__(self, config: Config, context: Context, student: Model) -> None:
        super().__init__(config, context, student)
        # Long and short guidance: the fake is trained and evaluated at the teacher's scale.
        self.fake_estimate = guided_model(self.fake, context, config.scale, config.per_sample)

    def student_losses(self, x: Tensor, batch: Batch) -> dict[str, Tensor]:
        x_tau, tau = self.noised(x, batch)
        real = self.real(x_tau, tau, batch.conditions).x_0
        fake = self.fake_estimate(x_tau, tau, batch.conditions).x_0
        return {"identity": score_identity(x.double(), fake, real, self.config.alpha)}


METHOD = ScoreIdentity
