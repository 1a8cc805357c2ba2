"""Base of the methods that train a student."""

from functools import cached_property

from torch import Tensor

from fewstep.backbones.model import Model
from fewstep.measures import TONES
from fewstep.students.config import MethodConfig
from fewstep.students.context import Context
from fewstep.students.watch import DRIFT, Watch
from fewstep.training.method import Method

STEPS = 4
"""Step count of evaluations and previews of a student that was made for any number of steps."""


class StudentMethod(Method):
    """A method with a student, whose images can be shown and measured while it trains."""

    limits = dict.fromkeys(TONES, DRIFT)

    def __init__(self, config: MethodConfig, context: Context, student: Model) -> None:
        self.context, self.student, self.denoiser = context, student, student.denoiser
        self.training = config.training

    @cached_property
    def watch(self) -> Watch:
        """The measurements, set up on first use."""
        return Watch(self.context)

    def evaluate(self) -> dict[str, float]:
        return self.watch.measure(self.student, self.student.steps or STEPS)

    def preview(self) -> Tensor:
        return self.context.preview(self.student, self.student.steps or STEPS)
