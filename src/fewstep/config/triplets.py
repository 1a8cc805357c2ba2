"""`triplets:` how many teacher images the students learn from."""

from typing import Literal

from pydantic import Field, field_validator

from fewstep.config.base import ProjectPath, Section
from fewstep.config.sampling import SamplingConfig, ScaleRange


class TripletsConfig(Section):
    """The `triplets` section."""

    shards: tuple[int, ...]
    """Shard numbers; each is a stage of its own."""
    shard_size: int = Field(ge=1)
    """Triplets per shard: shard s holds the indices `s * shard_size ... (s + 1) * shard_size - 1`."""
    steps: int = Field(ge=1)
    """Solver steps per triplet; the solver is that of `sampling`."""
    time_power: float | None = Field(None, gt=0)
    """See `sampling.time_power`; null: the same."""
    prompts: ProjectPath
    """A data set, whose training captions are used, or a text file with one prompt per line."""
    guidance: ScaleRange | None = None
    """Range of each triplet's guidance scale, drawn uniformly; null: `sampling.guidance` for all."""
    dtype: Literal["float32", "float16", "bfloat16"] = "float32"
    """Type of latents and text embeddings on disk; half precision is enough for Stable Diffusion."""

    def sampling(self, teachers: SamplingConfig) -> SamplingConfig:
        """Sampling settings of the triplets. teachers: the section `sampling`."""
        power = teachers.time_power if self.time_power is None else self.time_power
        return teachers.model_copy(update={"steps": self.steps, "time_power": power})

    @field_validator("shards")
    @classmethod
    def _distinct(cls, shards: tuple[int, ...]) -> tuple[int, ...]:
        if not shards or min(shards) < 0 or len(set(shards)) != len(shards):
            raise ValueError("needs at least one shard, all distinct and not negative")
        return shards
