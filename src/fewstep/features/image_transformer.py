"""Vision transformers from a local folder as transformers saves it, read strictly.

It holds `config.json`, weights in safetensors and the preprocessor's configuration. Nothing is downloaded.
"""

from collections.abc import Mapping
from math import ceil
from pathlib import Path
from typing import Annotated, Any

import torch
from pydantic import BeforeValidator, ConfigDict, Field, PositiveFloat
from torch import Tensor, nn

from fewstep.backbones.configurations import read_object
from fewstep.config.base import Section, validate
from fewstep.core.errors import UserError
from fewstep.features.resizing import resize, resize_uint8

PREPROCESSOR, PROCESSOR = "preprocessor_config.json", "processor_config.json"
"""Files of the preprocessing; the second (transformers >= 5) has it under `image_processor`."""
WEIGHTS = "model*.safetensors"
PICKLES = (".bin", ".pt", ".pth", ".ckpt")
MAPS = 4
"""Feature maps per network, evenly spaced in depth; fewer where it has fewer blocks."""


def square(value: Any) -> Any:
    """The side length in a size: a number, or a mapping with `height` and `width` or `shortest_edge`."""
    if not isinstance(value, Mapping):
        return value
    sides = [value[key] for key in ("height", "width", "shortest_edge") if value.get(key) is not None]
    if not sides or any(side != sides[0] for side in sides):
        raise ValueError("expected one side, the network takes square images")
    return sides[0]


Side = Annotated[int, BeforeValidator(square), Field(ge=1)]


class Preprocessor(Section):
    """The keys that are read from a preprocessor's configuration."""

    model_config = ConfigDict(extra="ignore")

    image_mean: tuple[float, float, float]
    image_std: tuple[PositiveFloat, PositiveFloat, PositiveFloat]
    """Of RGB in [0, 1]; the network receives (x - mean) / std."""
    size: Side
    crop_size: Side | None = None

    @property
    def side(self) -> int:
        """Side of the network's input images, in pixels."""
        return self.crop_size or self.size

    @classmethod
    def read(cls, folder: Path) -> "Preprocessor":
        """The preprocessor of a folder. Raises UserError naming the file and the key that is wrong."""
        for file in (folder / PREPROCESSOR, folder / PROCESSOR):
            if file.is_file():
                values = read_object(file)
                return validate(cls, values.get("image_processor", values), "", file)
        raise UserError(
            f"{folder / PREPROCESSOR}: no such file; it holds the size, mean and deviation that the weights "
            "were trained with, so fetch it together with them"
        )


class ImageTransformer(nn.Module):
    """A vision transformer with the preprocessing of the published metrics.

    Images are rounded to 8 bits, resized to the network's side by Pillow's antialiased bicubic filter,
    without a crop, and normalised with the preprocessor's mean and standard deviation.
    """

    channel_weights = None
    mean: Tensor
    std: Tensor

    def __init__(self, network: nn.Module, config: Any, preprocessor: Preprocessor) -> None:
        """network: takes `pixel_values`. config: its `hidden_size`, `patch_size` and `model_type`."""
        super().__init__()
        self.network = network
        self.side = preprocessor.side
        self.cells = self.side // config.patch_size
        family = config.model_type.removesuffix("_vision_model")
        self.name = f"{family}-{config.hidden_size}-patch{config.patch_size}-{self.side}"
        self.register_buffer("mean", torch.tensor(preprocessor.image_mean)[:, None, None], persistent=False)
        self.register_buffer("std", torch.tensor(preprocessor.image_std)[:, None, None], persistent=False)

    def prepare(self, x: Tensor) -> Tensor:
        """The network's input, `[B, 3, side, side]`; x `[B, 3, H, W]` in [-1, 1]."""
        levels = ((x.float() + 1) * 127.5).round().clamp(0, 255)
        return self.normalize(resize_uint8(levels, self.side) / 255)

    def normalize(self, x: Tensor) -> Tensor:
        """Map images in [0, 1] to the range that the network was trained on."""
        return (x - self.mean) / self.std

    def maps(self, x: Tensor) -> list[Tensor]:
        """Patch tokens after each quarter of the blocks, `[B, hidden_size, side / patch, side / patch]`.

        x: `[B, 3, H, W]` in [-1, 1], neither rounded nor clipped. Without class and register tokens.
        """
        prepared = self.normalize(resize((x.float() + 1) / 2, self.side))
        hidden = self.network(pixel_values=prepared, output_hidden_states=True).hidden_states
        blocks = sorted({ceil(quarter * (len(hidden) - 1) / MAPS) for quarter in range(1, MAPS + 1)})
        # The patches are the last tokens of every family.
        patches = [hidden[block][:, -self.cells * self.cells :] for block in blocks]
        return [tokens.transpose(1, 2).unflatten(2, (self.cells, self.cells)) for tokens in patches]


def load(kind: Any, folder: Path) -> Any:
    """The folder's model as class `kind` of transformers, float32, frozen, in evaluation mode.

    Raises UserError naming what is missing or damaged.
    """
    demand_weights(folder, kind.__name__)
    try:
        model, report = kind.from_pretrained(
            folder, local_files_only=True, use_safetensors=True, dtype=torch.float32, output_loading_info=True
        )
    except MemoryError:
        raise
    except Exception as error:  # a damaged file may raise any exception in the loader
        first = (str(error).splitlines() or [type(error).__name__])[0]
        raise UserError(
            f"{folder}: cannot be loaded as {kind.__name__}: {first}; where its files are cut short or are "
            "Git LFS pointers, fetch them again"
        ) from error
    if missing := sorted(report["missing_keys"]):
        raise UserError(
            f"{folder}: {len(missing)} weights of {kind.__name__} are in none of its files, {missing[0]} "
            "first; its config.json is another model's, or the files are not all there"
        )
    return model.eval().requires_grad_(False)


def demand_weights(folder: Path, kind: str) -> None:
    """Raises UserError where a folder has no safetensors file of weights; kind: the class to convert with."""
    if any(folder.glob(WEIGHTS)):
        return
    pickles = sorted(file.name for file in folder.iterdir() if file.suffix in PICKLES)
    if not pickles:
        raise UserError(f"{folder}: has no weights ({WEIGHTS}); fetch the folder again")
    raise UserError(
        f"{folder / pickles[0]}: is a pickle, which may run code when it is opened and is not opened here; "
        f"where you trust it, convert it: `transformers.{kind}.from_pretrained(FOLDER, use_safetensors=False)"
        ".save_pretrained(NEW_FOLDER)`"
    )
