"""`triplets:` how many teacher images the students learn from."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import Field, model_validator

from fewstep.config.base import ProjectPath, Section, read
from fewstep.config.sampling import SamplingConfig, ScaleRange
from fewstep.core.paths import TRIPLETS


class TripletsConfig(Section):
    """The `triplets` section."""

    count: int = Field(ge=1)
    """Number of triplets, a multiple of `shard_size`."""
    groups: tuple[int, ...]
    """`[0, 1, ...]`: the stages that draw them, one for each GPU or host. Of G groups, group g draws the
    shards g, g + G, g + 2 G, ...; the grouping changes no shard."""
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

    def shards(self, group: int) -> range:
        """Numbers of the shards that this group draws."""
        return range(group, self.count // self.shard_size, len(self.groups))

    @model_validator(mode="before")
    @classmethod
    def _renamed(cls, values: Any) -> Any:
        if isinstance(values, Mapping) and "shards" in values:
            raise ValueError(
                "the key `shards` is gone; write `count` (number of shards x shard_size) and `groups: [0]`"
            )
        return values

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.count % self.shard_size:
            raise ValueError(f"count = {self.count}: needs a multiple of shard_size = {self.shard_size}")
        if not self.groups or self.groups != tuple(range(len(self.groups))):
            raise ValueError(f"groups = {[*self.groups]}: needs the numbers 0, 1, 2, ... in order")
        if len(self.groups) > self.count // self.shard_size:
            raise ValueError(
                f"groups = {[*self.groups]}: more than the {self.count // self.shard_size} shards"
            )
        return self


def shard_folders(count: int, shard_size: int, groups: Sequence[int]) -> list[Path]:
    """Folders of all shards, in their order: artifacts/triplets/GROUP/SHARD."""
    return [TRIPLETS / str(shard % len(groups)) / str(shard) for shard in range(count // shard_size)]


def read_shard_folders() -> list[Path]:
    """The same, from params.yaml."""
    count, size = read(int, "triplets", "count"), read(int, "triplets", "shard_size")
    return shard_folders(count, size, read(list[int], "triplets", "groups"))
