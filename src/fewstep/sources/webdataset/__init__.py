"""Tar archives in the WebDataset convention: the members `key.jpg` and `key.json` are one sample.

Each archive is read by itself, once, front to back, so it may be a pipe or a URL. A damaged or
truncated one is reported by name; everything in it that can be read is still yielded.
"""

from collections.abc import Iterator
from glob import escape, glob, has_magic
from os.path import commonprefix
from pathlib import Path
from urllib.parse import urlparse

from webdataset.shardlists import expand_urls

from fewstep.config.data import DataConfig, KeysConfig
from fewstep.core.errors import UserError
from fewstep.sources.sample import (
    Sample,
    Skipped,
    Unreadable,
    caption_in,
    demand_captions,
    labels_in,
    parse_object,
    score_in,
)
from fewstep.sources.units import Unit
from fewstep.sources.webdataset.byte_stream import open_stream
from fewstep.sources.webdataset.grouping import Group, Grouping, Names
from fewstep.sources.webdataset.tar_members import TarReader

SUFFIXES = (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz")
EXPECTED = "expected tars: their folder, or e.g. `data/{000..009}.tar` or `data/*.tar`"


def inputs(config: DataConfig) -> list[Path]:
    """The local archives, whether they exist or not; URLs and pipes are left out."""
    try:
        urls = archives(config.path or "")
    except UserError:
        return [Path(config.path or "")]
    return [Path(local_path(url)) for url in urls if is_local(url)]


def count(config: DataConfig) -> int | None:
    """None: the archives must be read to be counted."""
    return None


def expected(config: DataConfig) -> str:
    """The members of a sample."""
    return (
        f"members `key.{config.keys.image[0]}` and `key.{config.keys.metadata}` with a "
        f"`{config.keys.caption}` (the names are data.keys)"
    )


def units(config: DataConfig, seed: int) -> Iterator[Unit]:
    """The archives that `config.path` names, in their order; `seed` is not used.

    Raises UserError when a local archive does not exist.
    """
    urls = archives(config.path or "")
    for url in urls:
        if not urlparse(url).scheme and not Path(url).exists():
            raise UserError(f"data.path = {config.path}: there is no file {url}; {EXPECTED}")
    folders = [url.rpartition("/")[0] + "/" for url in urls]
    root = commonprefix(folders).rpartition("/")[0] + "/"  # noqa: RUF071 - URLs are no paths
    for url in urls:
        yield Unit(url.removeprefix(root), url, (local_path(url),) if is_local(url) else ())


def read(unit: Unit, config: DataConfig, seed: int) -> Iterator[Sample | Unreadable | Skipped]:
    """The entries of one archive; `seed` is not used."""
    yield from archive(unit.content, unit.name, config.keys)


def samples(config: DataConfig, seed: int) -> Iterator[Sample | Unreadable | Skipped]:
    """Every sample of the archives `config.path` names, in their order; `seed` is not used.

    Raises UserError when a local archive does not exist or no sample has a caption.
    """
    entries = (entry for unit in units(config, seed) for entry in read(unit, config, seed))
    yield from demand_captions(entries, config.path, expected(config))


def archives(pattern: str) -> list[str]:
    """The files, URLs and pipes that `pattern` names: braces, `*` and folders of tars are expanded, sorted.

    Raises UserError when braces are unbalanced, or a folder or `*` leads to no tar.
    """
    try:
        urls = expand_urls(pattern)
    except ValueError as error:
        raise UserError(f"data.path = {pattern}: {error}; {EXPECTED}") from None
    expanded: list[str] = []
    for url in urls:
        if urlparse(url).scheme or not (Path(url).is_dir() or (has_magic(url) and not Path(url).exists())):
            expanded.append(url)
            continue
        inside = f"{escape(url)}/*" if Path(url).is_dir() else url
        tars = sorted(path for path in glob(inside) if path.endswith(SUFFIXES))  # noqa: PTH207
        if not tars:
            raise UserError(f"data.path = {pattern}: there is no tar at {url}; {EXPECTED}")
        expanded += tars
    return expanded


def is_local(url: str) -> bool:
    """Whether it is a file of this machine."""
    return urlparse(url).scheme in ("", "file")


def local_path(url: str) -> str:
    """The path of a file of this machine."""
    return urlparse(url).path if url.startswith("file:") else url


def archive(url: str, name: str, keys: KeysConfig) -> Iterator[Sample | Unreadable | Skipped]:
    """The entries of one archive: samples, unreadable and skipped ones, an Unreadable if it is damaged."""
    names = Names(keys)
    samples = 0
    problem = ""
    try:
        with open_stream(url) as stream:
            reader = TarReader(stream, names.wanted)
            for entry in Grouping(names).groups(reader.members()):
                match entry:
                    case Group():
                        samples += 1
                        yield sample(name, entry, names, keys)
                    case Unreadable():
                        samples += 1
                        yield Unreadable(f"{name}/{entry.name}", entry.reason, entry.detail)
                    case Skipped():
                        yield Skipped(f"{name}/{entry.name}", entry.reason)
            problem = reader.problem
    except OSError as error:
        problem = error.strerror or "its command or download failed"
    if problem:
        yield Unreadable(name, "broken archive", f"{problem}; {samples} samples found")


def sample(archive: str, group: Group, names: Names, keys: KeysConfig) -> Sample | Unreadable:
    """The sample that the members of one key form."""
    name = f"{archive}/{group.key}"
    image = next(group.parts[suffix] for suffix in names.images if suffix in group.parts)
    try:
        record = parse_object(group.parts[names.metadata])
        caption, score = caption_in(record, keys.caption), score_in(record, keys.aesthetic_score)
        labels, hidden = labels_in(record, keys.labels), labels_in(record, keys.hidden)
    except ValueError as error:
        return Unreadable(name, "broken metadata", f".{keys.metadata}: {error}")
    return Sample(name, image, caption, score, labels, hidden)
