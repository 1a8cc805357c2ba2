"""Prepares one sample: decodes, filters and resizes it, whatever other samples there are."""

from dataclasses import dataclass

from fewstep.config.data import DataConfig
from fewstep.core.text import normalised
from fewstep.data.record import Record
from fewstep.preparation.filters import aesthetic_fault, caption_fault, size_fault
from fewstep.preparation.images import BadImage, decode, encode, fit
from fewstep.preparation.split import digest_of
from fewstep.sources.sample import NO_CAPTION, Sample, Unreadable


@dataclass(frozen=True)
class Rejected:
    """A readable sample that a filter refused."""

    reason: str


@dataclass(frozen=True)
class Prepared:
    """A sample as it goes into a shard, unless it is a duplicate.

    digest: hash of the pixels. size: (width, height) of the original.
    """

    digest: bytes
    png: bytes
    record: Record
    size: tuple[int, int]


def examine(entry: Sample | Unreadable, config: DataConfig) -> Prepared | Rejected | Unreadable:
    """Prepare, reject or quarantine one sample, by its first fault; the cheapest checks come first."""
    if isinstance(entry, Unreadable):
        return entry
    if entry.caption is None:
        return Unreadable(entry.name, NO_CAPTION)
    caption = normalised(entry.caption)
    fault = caption_fault(caption, config.filters) or aesthetic_fault(entry.aesthetic_score, config.filters)
    if fault:
        return Rejected(fault)
    try:
        original = decode(entry.image)
    except BadImage as error:
        return Unreadable(entry.name, error.reason, error.detail)
    if fault := size_fault(original.size, config.filters):
        return Rejected(fault)
    image = fit(original, config.resolution)
    return Prepared(
        digest=digest_of(image.tobytes()),
        png=encode(image),
        record=Record(
            caption=caption,
            labels=entry.labels,
            hidden=entry.hidden,
            aesthetic_score=entry.aesthetic_score,
        ),
        size=original.size,
    )
