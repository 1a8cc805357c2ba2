"""Filters for readable samples. Each function returns why a sample is rejected, or None.

The reasons are fixed phrases: `statistics.json` counts by them.
"""

from fewstep.config.data import FilterConfig
from fewstep.preparation.split import digest_of


def caption_fault(caption: str, config: FilterConfig) -> str | None:
    """Filter by length; `caption`: normalised."""
    low, high = config.caption_length
    if len(caption) < low:
        return "caption too short"
    if len(caption) > high:
        return "caption too long"
    return None


def aesthetic_fault(score: float | None, config: FilterConfig) -> str | None:
    """Filter by aesthetic score; `score`: None where the source has none."""
    if config.min_aesthetic is None:
        return None
    if score is None:
        return None if config.allow_missing_aesthetic else "no aesthetic score"
    return "low aesthetic score" if score < config.min_aesthetic else None


def size_fault(size: tuple[int, int], config: FilterConfig) -> str | None:
    """Filter by resolution; `size`: of the original image, pixels."""
    return "too small" if min(size) < config.min_side else None


class Duplicates:
    """The images seen so far, and the captions of each.

    This is the only memory of the stage that grows with the data: about 140 bytes per image and 120 more per
    further caption of it, 1.4 GB for 10^7 images. If that does not fit into memory, prepare several parts as
    several data sets.
    """

    def __init__(self) -> None:
        self._first: dict[bytes, int] = {}
        self._further: dict[bytes, set[int]] = {}

    def ordinal(self, digest: bytes, caption: str) -> int | None:
        """How many other captions the image had before; None for an image and caption seen before.

        digest: of the prepared pixels. Remembers both.
        """
        text = int.from_bytes(digest_of(caption.encode())[:8], "big")
        if digest not in self._first:
            self._first[digest] = text
            return 0
        further = self._further.get(digest, set())
        if text == self._first[digest] or text in further:
            return None
        further.add(text)
        self._further[digest] = further
        return len(further)
