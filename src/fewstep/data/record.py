"""The JSON member of a sample in a shard."""

from collections.abc import Mapping

from fewstep.config.base import Section


class Record(Section):
    """A sample without its image; fields that the source does not have are absent."""

    caption: str
    labels: Mapping[str, str] | None = None
    hidden: Mapping[str, str] | None = None
    aesthetic_score: float | None = None

    def json_bytes(self) -> bytes:
        """The content of the member."""
        return self.model_dump_json(exclude_none=True).encode()
