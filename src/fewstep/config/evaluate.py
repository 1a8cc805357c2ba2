"""`evaluation_set:` and `evaluate:` what is measured, on what."""

from pydantic import Field, field_validator

from fewstep.config.base import Section


class EvaluationSetConfig(Section):
    """The `evaluation_set` section: the same prompts, noises and real pictures for every model."""

    pictures: int = Field(ge=2)
    """Held-out prompts drawn, and pictures drawn per model and step count."""
    reference: int = Field(ge=2)
    """Real held-out pictures that the Frechet distance compares with, at most."""
    grid: int = Field(12, ge=1)
    """Pictures per row of the report's grid."""


class EvaluateConfig(Section):
    """The `evaluate` section."""

    models: dict[str, tuple[int, ...]]
    """Model -> step counts at which it is judged."""

    @field_validator("models")
    @classmethod
    def _steps(cls, models: dict[str, tuple[int, ...]]) -> dict[str, tuple[int, ...]]:
        for name, steps in models.items():
            if not steps or min(steps) < 1 or len(set(steps)) != len(steps):
                raise ValueError(f"{name}: needs distinct step counts of at least 1")
        return models
