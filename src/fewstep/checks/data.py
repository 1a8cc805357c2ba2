"""Checks that the images and prompts that params.yaml names exist and look right."""

from collections.abc import Iterator
from functools import lru_cache
from importlib import import_module
from itertools import islice
from pathlib import Path

from fewstep.chain import Chain
from fewstep.config.data import DataConfig
from fewstep.core.errors import UserError
from fewstep.core.keyed import Key
from fewstep.core.paths import DATA
from fewstep.sampling.triplets import prompts_of
from fewstep.sources.sample import Sample, Skipped, Unreadable

LOOKED_AT = 16
"""Entries of the source that are read: enough to see whether captions are found."""


def faults(chain: Chain) -> Iterator[str]:
    """Inputs that are missing or cannot be read, with the stages' own messages."""
    source = import_module(f"fewstep.sources.{chain.data.source}")
    missing = [place for place in source.inputs(chain.data) if not place.exists()]
    if missing:
        known = f"; inputs names {', '.join(chain.inputs)}" if chain.inputs else ""
        yield f"params.yaml: data.path = {chain.data.path!r}: no such file or folder: {missing[0]}{known}"
    elif source.inputs(chain.data):
        # Not a URL, which would have to be downloaded.
        try:
            first_entries(chain)
        except UserError as error:
            yield f"params.yaml: {error}"
    prompts = chain.triplets.prompts
    if prompts == DATA:
        return
    if not prompts.is_file():
        yield f"params.yaml: triplets.prompts = {prompts}: no such file; {DATA} takes the training captions"
        return
    try:
        prompts_of(prompts, Key(chain.seed, "check"), range(1))
    except UserError as error:
        yield str(error)


def warnings(chain: Chain) -> Iterator[str]:
    """What looks wrong in the first entries of the source."""
    source = import_module(f"fewstep.sources.{chain.data.source}")
    if not source.inputs(chain.data):
        return
    asked, there = chain.data.count, source.count(chain.data)
    if asked is not None and there is not None and there > asked:
        yield f"data.count = {asked}: the source has about {there} images; null takes them all"
    first = first_entries(chain)
    if first and not any(isinstance(entry, Sample) and entry.caption for entry in first):
        yield f"data.path: none of its first {len(first)} entries is an image with a caption, e.g. {first[0]}"


def first_entries(chain: Chain, count: int = LOOKED_AT) -> list[Sample | Unreadable]:
    """The first `count` entries of the source, without skipped ones. Raises UserError as the source does."""
    source = import_module(f"fewstep.sources.{chain.data.source}")
    entries = source.samples(chain.data, chain.seed)
    return list(islice((entry for entry in entries if not isinstance(entry, Skipped)), count))


def images_of(config: DataConfig) -> int | None:
    """Approximate number of images in the source, from names alone; None where it must be read to count."""
    return counted(config, Path.cwd())


@lru_cache
def counted(config: DataConfig, folder: Path) -> int | None:
    """`images_of` in this working folder; cached, since several checks need it and 10^6 names take 10 s."""
    source = import_module(f"fewstep.sources.{config.source}")
    if not all((folder / place).exists() for place in source.inputs(config)):
        return None
    known: list[int] = [n for n in (source.count(config), config.count) if n is not None]
    return min(known, default=None)
