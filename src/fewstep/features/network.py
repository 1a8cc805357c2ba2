"""Interface of the feature networks, and how they are opened from the disk."""

import importlib
import pkgutil
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Protocol, Self

import torch
from torch import Tensor, nn

from fewstep.artifacts.manifest import NAME
from fewstep.backbones.configurations import CONFIG, read_object
from fewstep.core.errors import UserError
from fewstep.core.files import read_json


class FeatureNetwork(Protocol):
    """A frozen network that maps images `[B, 3, H, W]` in [-1, 1] to feature vectors."""

    @property
    def name(self) -> str:
        """Name in the metrics file."""
        ...

    @property
    def kernel(self) -> str:
        """Kernel of the kernel distance in these features.

        "polynomial": (x . y / D + 1)^3 (KID, Binkowski et al. 2018). "gaussian": exp(-|x - y|^2 / 200) on
        features of unit length, times 1,000 (CMMD, Jayasumana et al. 2024).
        """
        ...

    @property
    def channel_weights(self) -> Sequence[Tensor] | None:
        """Learned weights of the channels of each of the `maps`, `[C_i]`, for a perceptual distance.

        None: all channels and maps have equal weight.
        """
        ...

    def features(self, x: Tensor) -> Tensor:
        """One row per image, `[B, D]`."""
        ...

    def maps(self, x: Tensor) -> list[Tensor]:
        """Activations `[B, C_i, H_i, W_i]`, shallow to deep, not normalised; differentiable in x.

        Raises UserError where the network has none.
        """
        ...

    def to(self, device: torch.device) -> Self:
        """Move to `device`."""
        ...


class Opener(Protocol):
    """A class of this package that opens a feature network from the disk."""

    opens: tuple[str, ...]
    """What it opens, as `kind_of` returns it."""

    def open(self, path: Path) -> FeatureNetwork:
        """The network, frozen, in evaluation mode, on the CPU. Raises UserError where it is damaged."""
        ...

    def untrained(self, path: Path) -> nn.Module:
        """The network with the architecture of `open(path)`; its weights are not read.

        Raises UserError where its configuration is damaged.
        """
        ...


def open_features(path: Path) -> FeatureNetwork:
    """The network at `path`, frozen, in evaluation mode, on the CPU.

    path: see `kind_of`. Raises UserError when no class of this package opens it, or when it is damaged.
    """
    return opener(path).open(path)


def opener(path: Path) -> Opener:
    """The class that opens what is at `path`. Raises UserError listing what can be opened."""
    kind = kind_of(path)
    if kind in openers():
        return openers()[kind]
    actual = kind or ("something else" if path.exists() else "nothing")
    raise UserError(
        f"{path}: features need one of: {', '.join(sorted(openers()))} (`dvc repro` makes artifacts, "
        f"docs/metrics.md lists where to get the others); found {actual}"
    )


def kind_of(path: Path) -> str | None:
    """What is at `path`: "artifact <kind>", "model_type <type>", "file <name>" or "files <name>, <name>".

    The model type is that of `config.json` in a folder saved by transformers. Two files are all that a folder
    holds beside hidden ones. None for anything else.
    """
    if path.is_file():
        return f"file {path.name}"
    if (path / NAME).is_file():
        return f"artifact {read_json(path / NAME).get('kind')}"
    if (path / CONFIG).is_file() and (model := read_object(path / CONFIG).get("model_type")):
        return f"model_type {model}"
    names = sorted(each.name for each in path.glob("[!.]*")) if path.is_dir() else []
    return f"files {', '.join(names)}" if len(names) == 2 else None


@cache
def openers() -> dict[str, Opener]:
    """Kind -> the class that opens it, for every class of this package with an attribute `opens`.

    They are found by importing the package's files, so that a new feature network is a new file.
    """
    by_kind: dict[str, Opener] = {}
    for module in pkgutil.iter_modules([str(Path(__file__).parent)]):
        members = vars(importlib.import_module(f"{__package__}.{module.name}")).values()
        for member in members:
            if isinstance(member, type):
                by_kind |= dict.fromkeys(getattr(member, "opens", ()), member)
    return by_kind
