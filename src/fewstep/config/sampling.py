"""`sampling:` how the teacher's ODE is solved, wherever an image is drawn from the teacher."""

from typing import Annotated

from pydantic import AfterValidator, Field, field_validator

from fewstep.config.base import Section
from fewstep.core.text import normalised
from fewstep.diffusion.solvers import Solver


def _ordered(scales: tuple[float, float]) -> tuple[float, float]:
    if not 0 <= scales[0] <= scales[1]:
        raise ValueError("needs two scales [low, high], 0 <= low <= high")
    return scales


Scale = Annotated[float, Field(ge=0)]
"""Classifier-free guidance scale; 1: no guidance."""
ScaleRange = Annotated[tuple[float, float], AfterValidator(_ordered)]
"""Lowest and highest guidance scale of samples that have a scale each."""


class SamplingConfig(Section):
    """The `sampling` section."""

    solver: Solver = Solver.DPM_SOLVER_PP_2M
    steps: int = Field(32, ge=1)
    time_power: float = Field(1.0, gt=0)
    """Exponent applied to each of the model family's times in [0, 1]; 1: as in diffusers. Below 1, more steps
    are taken at high noise, where the composition is decided (docs/sampling.md has measurements)."""
    guidance: float = Field(1.0, ge=0)
    """Classifier-free guidance scale w; 1: none."""
    negative_prompt: Annotated[str, AfterValidator(normalised)] = ""

    @field_validator("solver")
    @classmethod
    def _ode(cls, solver: Solver) -> Solver:
        if solver is Solver.RENOISE:
            raise ValueError("renoise solves no ODE; it samples only students whose manifest names it")
        return solver
