"""`triplets:` how many teacher pictures the students learn from."""

from pydantic import Field, field_validator

from fewstep.config.base import Section


class TripletsConfig(Section):
    """The `triplets` section."""

    shards: tuple[int, ...]
    """Shard numbers; each is a stage of its own."""
    shard_size: int = Field(ge=1)
    """Triplets per shard: shard s holds the indices `s * shard_size ... (s + 1) * shard_size - 1`."""
    steps: int = Field(ge=1)
    """Solver steps per triplet; the solver and guidance are `sampling`'s."""

    @field_validator("shards")
    @classmethod
    def _distinct(cls, shards: tuple[int, ...]) -> tuple[int, ...]:
        if not shards or min(shards) < 0 or len(set(shards)) != len(shards):
            raise ValueError("needs at least one shard, all distinct and not negative")
        return shards
