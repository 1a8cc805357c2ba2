"""`evaluation_set:` and `evaluate:` what is measured, on what."""

from pydantic import Field, field_validator

from fewstep.config.base import Section


class DiversityConfig(Section):
    """Images from different noise for the same prompt."""

    prompts: int = Field(64, ge=2)
    """Prompts that get several images, at most."""
    samples: int = Field(4, ge=2)
    """Images of each; equal prompts of the set count."""


class EvaluationSetConfig(Section):
    """The `evaluation_set` section: the same prompts, noise and real images for every model."""

    pictures: int = Field(ge=2)
    """Held-out prompts, each with its real image; as many images are drawn per model and step count."""
    reference: int = Field(ge=2)
    """Real held-out images that the Frechet distance compares with, at most."""
    training: int = Field(10000, ge=8)
    """Training images among which copies are looked for, at most."""
    diversity: DiversityConfig = DiversityConfig()
    grid: int = Field(12, ge=1)
    """Images per row of the report's grid."""


class EvaluateConfig(Section):
    """The `evaluate` section."""

    models: dict[str, tuple[int, ...]]
    """Model -> step counts at which it is evaluated."""

    @field_validator("models")
    @classmethod
    def _steps(cls, models: dict[str, tuple[int, ...]]) -> dict[str, tuple[int, ...]]:
        for name, steps in models.items():
            if not steps or min(steps) < 1 or len(set(steps)) != len(steps):
                raise ValueError(f"{name}: needs distinct step counts of at least 1")
        return models
