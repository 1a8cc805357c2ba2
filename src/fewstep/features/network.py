"""Feature networks: what a picture is compared by, whoever computes it."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol, Self

import torch
from torch import Tensor

from fewstep.artifacts.folder import read_json
from fewstep.artifacts.manifest import NAME
from fewstep.errors import UserError
from fewstep.features import inception
from fewstep.features.autoencoder import AutoencoderFeatures
from fewstep.features.inception import InceptionFeatures
from fewstep.features.judge import Judge


class FeatureNetwork(Protocol):
    """A frozen network that turns pictures `[B, 3, H, W]` in [-1, 1] into numbers."""

    @property
    def name(self) -> str:
        """As the metrics file names it."""
        ...

    def features(self, x: Tensor) -> Tensor:
        """One row per picture, `[B, D]`."""
        ...

    def maps(self, x: Tensor) -> list[Tensor]:
        """Activations `[B, C_i, H_i, W_i]`, fine to coarse, not normalised; differentiable in x."""
        ...

    def to(self, device: torch.device) -> Self:
        """Move to `device`."""
        ...


ARTIFACTS: Mapping[str, Callable[[Path], FeatureNetwork]] = {
    "judge": Judge.open,
    "teacher": AutoencoderFeatures.open,
}
"""Kind of artifact -> how to open it."""


def open_features(path: Path) -> FeatureNetwork:
    """The network that lies at `path`, frozen, in evaluation mode, on the CPU.

    path: the folder of a judge or a teacher, or the file `inception-2015-12-05.pt`.
    Raises UserError when there is none of these, or one that is damaged.
    """
    return opener(path)(path)


def opener(path: Path) -> Callable[[Path], FeatureNetwork]:
    """Who can open what lies at `path`."""
    if path.is_file() and path.name == inception.FILE:
        return InceptionFeatures.open
    kind: Any = read_json(path / NAME).get("kind") if (path / NAME).is_file() else None
    if kind in ARTIFACTS:
        return ARTIFACTS[kind]
    found = f"a {kind!r} artifact" if kind else "something else" if path.exists() else "nothing"
    raise UserError(
        f"{path}: features need the folder of a {' or '.join(ARTIFACTS)} artifact (`dvc repro` makes them) "
        f"or the file {inception.FILE} ({inception.URL}); found {found}"
    )
