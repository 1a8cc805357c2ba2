"""LPIPS from a local folder (Zhang et al. 2018, "The unreasonable effectiveness of deep features ...").

The folder holds two published files, and nothing else but hidden files: the weights of an ImageNet classifier
as torchvision publishes them, and the learned weights of its channels as the package `lpips` (version 0.1)
publishes them. Both are pickles; they are read by PyTorch's restricted unpickler, which runs no code.
"""

from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, NamedTuple, Self

import torch
from torch import Tensor, nn

from fewstep.core.errors import UserError

SHIFT, SCALE = (-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)
"""The network receives `(x - shift) / scale`, x in [-1, 1]: ImageNet's mean and deviation."""


class Classifier(NamedTuple):
    """A classifier of torchvision. width: channels of the last map. ends: number of layers up to each map."""

    name: str
    width: int
    ends: tuple[int, ...]


CLASSIFIERS = {
    "vgg.pth": Classifier("vgg16", 512, (4, 9, 16, 23, 30)),
    "alex.pth": Classifier("alexnet", 256, (2, 5, 8, 10, 12)),
}
"""File of the channels' weights -> the classifier that they are for. Each map is the output of a ReLU."""
FOLDERS = {
    "alexnet-owt-4df8aa71.pth": "alex.pth",
    "alexnet-owt-7be5be79.pth": "alex.pth",
    "vgg16-397923af.pth": "vgg.pth",
}
"""Published file of a classifier -> the file of its channels' weights."""


class Lpips(nn.Module):
    """VGG16's activations before each pooling, or AlexNet's after each convolution, with channel weights."""

    kernel = "polynomial"
    opens = tuple("files " + ", ".join(sorted(pair)) for pair in FOLDERS.items())
    shift: Tensor
    scale: Tensor

    def __init__(self, classifier: Classifier, layers: Any, weights: Sequence[Tensor]) -> None:
        """layers: the classifier's `features`. weights: of the channels of each map, `[C_i]`."""
        super().__init__()
        self.name = f"lpips-{classifier.name}"
        self.slices = nn.ModuleList(layers[i:j] for i, j in pairwise((0, *classifier.ends)))
        for name, value in (("shift", SHIFT), ("scale", SCALE)):
            self.register_buffer(name, torch.tensor(value)[:, None, None])
        for i, weight in enumerate(weights):
            self.register_buffer(f"weight_{i}", weight)

    @property
    def channel_weights(self) -> list[Tensor]:
        """`[C_i]` of each map: see `FeatureNetwork`."""
        return [getattr(self, f"weight_{i}") for i in range(len(self.slices))]

    def maps(self, x: Tensor) -> list[Tensor]:
        """The five activations, shallow to deep; x `[B, 3, H, W]` in [-1, 1], H and W at least 32."""
        hidden, maps = (x - self.shift) / self.scale, []
        for layers in self.slices:
            hidden = layers(hidden)
            maps.append(hidden)
        return maps

    def features(self, x: Tensor) -> Tensor:
        """The last activations averaged over space, `[B, C]`; x `[B, 3, H, W]` in [-1, 1]."""
        return self.maps(x)[-1].mean((2, 3))

    @classmethod
    def untrained(cls, folder: Path) -> Self:
        """The network of a folder's classifier, whose layers are on the meta device."""
        (name,) = (name for name in FOLDERS if (folder / name).is_file())
        classifier = CLASSIFIERS[FOLDERS[name]]
        layers = layers_of(classifier)
        return cls(classifier, layers, [torch.ones(width) for width in widths_of(classifier, layers)])

    @classmethod
    def open(cls, folder: Path) -> Self:
        """The network of a folder's two files. Raises UserError naming the file that is wrong."""
        (file,) = (folder / name for name in FOLDERS if (folder / name).is_file())
        linear = folder / FOLDERS[file.name]
        classifier = CLASSIFIERS[linear.name]
        layers = layers_of(classifier)
        weights = {
            name.removeprefix("features."): weight
            for name, weight in read(file).items()
            if name.startswith("features.")
        }
        try:
            layers.load_state_dict(weights, assign=True)
        except RuntimeError as error:
            raise UserError(f"{file}: not torchvision's weights of {classifier.name} ({error})") from None
        weights_of_maps = linear_weights(linear, widths_of(classifier, layers))
        return cls(classifier, layers, weights_of_maps).float().eval().requires_grad_(False)


def layers_of(classifier: Classifier) -> Any:
    """The classifier's `features`, on the meta device."""
    from torchvision import models  # takes a second to import, and only this network needs it

    with torch.device("meta"):
        return getattr(models, classifier.name)().features


def widths_of(classifier: Classifier, layers: Any) -> list[int]:
    """Channels of each map."""
    return [layers[end - 2].out_channels for end in classifier.ends]


def linear_weights(file: Path, widths: Sequence[int]) -> list[Tensor]:
    """The learned weights of each map's channels, `[widths[i]]`, from `lin<i>.model.1.weight [1, C_i, 1, 1]`.

    Raises UserError where they have other names or shapes, or are negative.
    """
    weights = read(file)
    shapes = {f"lin{i}.model.1.weight": (1, width, 1, 1) for i, width in enumerate(widths)}
    if {name: tuple(weight.shape) for name, weight in weights.items()} != shapes:
        raise UserError(f"{file}: not the channel weights of lpips; expected the tensors {shapes}")
    if any((weight < 0).any() for weight in weights.values()):
        raise UserError(f"{file}: has negative channel weights; those of lpips are at least 0")
    return [weights[name].flatten() for name in shapes]


def read(file: Path) -> Mapping[str, Tensor]:
    """The tensors of a file of `torch.save`, by name. Raises UserError where it holds anything else."""
    try:
        weights = torch.load(file, map_location="cpu", weights_only=True)
    except (UnpicklingError, RuntimeError, EOFError, ValueError) as error:
        raise UserError(
            f"{file}: damaged, or not weights; download it again ({str(error).splitlines()[0]})"
        ) from None
    if not isinstance(weights, Mapping) or not all(isinstance(each, Tensor) for each in weights.values()):
        raise UserError(f"{file}: not weights by name")
    return weights
