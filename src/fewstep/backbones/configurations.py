"""Reads the JSON configurations of a teacher's folder, without its weights; errors name file and key."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from fewstep.core.errors import UserError

INDEX = "model_index.json"
CONFIG = "config.json"
SCHEDULER_CONFIG = "scheduler_config.json"
REPAIR = "the file is damaged; fetch it again"


def fault(file: Path, key: str, value: Any, why: str) -> str:
    """One line: the file, the key, its value, and why it is refused or what to do."""
    shown = json.dumps(value) if not isinstance(value, str) else repr(value)
    return f"{file}: {key} = {shown if len(shown) < 60 else shown[:56] + ' ...'}: {why}"


def read_object(file: Path) -> dict[str, Any]:
    """A JSON object of a user's folder. Raises UserError naming the file if it is missing or no object."""
    try:
        value = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{file}: no such file; a teacher's folder is as diffusers writes it") from None
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{file}: not readable as JSON ({error}); {REPAIR}") from None
    if not isinstance(value, dict):
        raise UserError(f"{file}: expected a JSON object, found {type(value).__name__}; {REPAIR}")
    return value


@dataclass(frozen=True)
class Configurations:
    """Configurations of a diffusers pipeline folder. without: parts that the user leaves out."""

    folder: Path
    without: tuple[str, ...] = ()

    @cached_property
    def index(self) -> Mapping[str, Any]:
        """The pipeline's index. Raises UserError."""
        return read_object(self.folder / INDEX)

    def has(self, part: str) -> bool:
        """Whether the index lists a part that is not left out."""
        entry = self.index.get(part)
        return isinstance(entry, list) and bool(entry) and entry[0] is not None and part not in self.without

    def file(self, part: str) -> Path:
        """The configuration file of a part."""
        return self.folder / part / (SCHEDULER_CONFIG if part == "scheduler" else CONFIG)

    def of(self, part: str) -> dict[str, Any]:
        """The configuration of a part. Raises UserError."""
        return read_object(self.file(part))

    def number(self, part: str, key: str, default: int | None = None) -> int | None:
        """An integer setting of a part; None if the part or the setting is absent, or it is no integer.

        default: the default of the part's class, for a file that omits the key.
        """
        try:
            value = self.of(part).get(key, default)
        except UserError:
            return None
        return value if isinstance(value, int) and not isinstance(value, bool) else None


def must_be(
    configurations: Configurations, part: str, key: str, wanted: int | None, why: str
) -> Iterator[str]:
    """A fault if a part's number differs from the wanted one; none if either is unknown (None)."""
    number = configurations.number(part, key)
    if None not in (number, wanted) and number != wanted:
        yield fault(configurations.file(part), key, number, f"{why}, which is {wanted}")


def square(configurations: Configurations, part: str) -> Iterator[str]:
    """A part's `sample_size` must be one number."""
    size = configurations.of(part).get("sample_size")
    if not isinstance(size, int) or size < 1:
        why = "expected one number, the side length that it was trained at"
        yield fault(configurations.file(part), "sample_size", size, why)


def channels(
    configurations: Configurations, part: str, tokens: int = 1, variance: bool = False
) -> Iterator[str]:
    """The denoiser's channels must match the autoencoder's.

    tokens: latent pixels per token. variance: whether the network may have twice as many output channels:
    half of them a learned variance, which the family's adapter drops.
    """
    latent = configurations.number("vae", "latent_channels")
    wanted = latent * tokens if latent else None
    why = f"must be {f'{tokens} times ' if tokens > 1 else ''}the autoencoder's latent_channels"
    further = " (a network with more takes an image or mask as a further input: inpainting, editing)"
    faults = list(must_be(configurations, part, "in_channels", wanted, why + further))
    if not (variance and wanted and configurations.number(part, "out_channels") == 2 * wanted):
        faults = faults or list(must_be(configurations, part, "out_channels", wanted, why))
    yield from faults
