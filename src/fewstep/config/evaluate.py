"""`evaluation_set:` and `evaluate:` the data of the evaluation, and the models it measures."""

from pydantic import Field, field_validator

from fewstep.config.base import Section


class DiversityConfig(Section):
    """Images from different noise samples for the same prompt."""

    prompts: int = Field(64, ge=2)
    """Largest number of prompts with several images."""
    samples: int = Field(4, ge=2)
    """Images per prompt, including those of the same prompt elsewhere in the set."""


class EvaluationSetConfig(Section):
    """The `evaluation_set` section: the same prompts, noise and real images for every model."""

    pictures: int = Field(ge=2)
    """Number of held-out prompts, each with its real image, and of images per model and step count."""
    reference: int = Field(ge=2)
    """Largest number of real held-out images in the reference set of the Frechet distance."""
    training: int = Field(10000, ge=8)
    """Largest number of training images that are searched for copies."""
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
