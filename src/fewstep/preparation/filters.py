"""Which readable samples are good enough. Each function returns why not, or None.

The reasons are fixed phrases: `statistics.json` counts by them.
"""

from fewstep.config.data import FilterConfig


def caption_fault(caption: str, config: FilterConfig) -> str | None:
    """`caption` as stripped."""
    low, high = config.caption_length
    if len(caption) < low:
        return "caption too short"
    if len(caption) > high:
        return "caption too long"
    return None


def aesthetic_fault(score: float | None, config: FilterConfig) -> str | None:
    """`score`: None where the source has none."""
    if config.min_aesthetic is None:
        return None
    if score is None:
        return None if config.allow_missing_aesthetic else "no aesthetic score"
    return "low aesthetic score" if score < config.min_aesthetic else None


def size_fault(size: tuple[int, int], config: FilterConfig) -> str | None:
    """`size`: of the original picture, pixels."""
    return "too small" if min(size) < config.min_side else None


class Duplicates:
    """The contents seen so far.

    This is the one thing of the stage that grows with the data: about 100 bytes per kept picture,
    1 GB for 10^7. Beyond what the memory holds, prepare several parts as several data sets.
    """

    def __init__(self) -> None:
        self._seen: set[bytes] = set()

    def fault(self, digest: bytes) -> str | None:
        """`digest`: of the prepared pixels. Remembers it."""
        if digest in self._seen:
            return "duplicate"
        self._seen.add(digest)
        return None
