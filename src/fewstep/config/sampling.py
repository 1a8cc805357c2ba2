"""`sampling:` how the teacher's ODE is solved, wherever an image is drawn from the teacher."""

from typing import Annotated, Any

from pydantic import (
    AfterValidator,
    Field,
    SerializerFunctionWrapHandler,
    field_validator,
    model_serializer,
)

from fewstep.config.base import Section
from fewstep.core.text import normalised
from fewstep.diffusion.solvers import Solver


def _ordered(scales: tuple[float, float]) -> tuple[float, float]:
    if not 0 <= scales[0] <= scales[1]:
        raise ValueError("needs two scales [low, high], 0 <= low <= high")
    return scales


def _increasing(levels: tuple[float, float | None]) -> tuple[float, float | None]:
    low, high = levels
    if low < 0 or (high is not None and high <= low):
        raise ValueError("needs two noise levels [low, high], 0 <= low < high; null as high: no upper limit")
    return levels


Scale = Annotated[float, Field(ge=0)]
"""Classifier-free guidance scale; 1: no guidance."""
ScaleRange = Annotated[tuple[float, float], AfterValidator(_ordered)]
"""Lowest and highest guidance scale of samples that have a scale each."""
NoiseRange = Annotated[tuple[float, float | None], AfterValidator(_increasing)]
"""Noise levels `low < sigma / alpha <= high`; high null: no upper limit."""


class SamplingConfig(Section):
    """The `sampling` section."""

    solver: Solver = Solver.DPM_SOLVER_PP_2M
    steps: int = Field(32, ge=1)
    time_power: float = Field(1.0, gt=0)
    """Exponent applied to each of the model family's times in [0, 1]; 1: as in diffusers. Below 1, more steps
    are taken at high noise, where the composition is decided (docs/sampling.md has measurements)."""
    guidance: float = Field(1.0, ge=0)
    """Classifier-free guidance scale w; 1: none."""
    guidance_interval: NoiseRange | None = None
    """Noise levels sigma / alpha at which guidance applies; null: at all. At other levels the network is
    evaluated with the prompt only, once per sample (Kynkaanniemi et al. 2024)."""
    negative_prompt: Annotated[str, AfterValidator(normalised)] = ""

    @field_validator("solver")
    @classmethod
    def _ode(cls, solver: Solver) -> Solver:
        if solver is Solver.RENOISE:
            raise ValueError("renoise solves no ODE; it samples only students whose manifest names it")
        return solver

    @model_serializer(mode="wrap")
    def _plain(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Without an interval, the values are those that manifests had before there was one."""
        values: dict[str, Any] = handler(self)
        if self.guidance_interval is None:
            values.pop("guidance_interval", None)
        return values
