"""Observations of images, computed once: everything that the figures are computed from."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from fewstep.core.files import read_json, write_json
from fewstep.core.hardware import device, images_at_once, in_parts
from fewstep.data.pixels import from_uint8
from fewstep.features.attribute_classifier import AttributeClassifier
from fewstep.features.layout import layout
from fewstep.features.network import FeatureNetwork
from fewstep.measures.tone import tones


@dataclass(frozen=True)
class Observations:
    """Everything that the figures need about N images.

    features: `[N, D]` of the feature network. layout: `[N, 192]`, see features/layout.py. tones: `[N, 4]`,
    see measures/tone.py. attributes: what a classifier recognises in each image; None without one.
    prompt_similarity: `[N]`, where the feature network embeds prompts (CLIP score).
    """

    features: Tensor
    layout: Tensor
    tones: Tensor
    attributes: Sequence[Mapping[str, str]] | None = None
    prompt_similarity: Tensor | None = None

    def __len__(self) -> int:
        return len(self.features)

    def rows(self, chosen: Sequence[int]) -> "Observations":
        """The observations of the chosen images, in this order."""
        index = torch.tensor(chosen, dtype=torch.long)
        return Observations(
            self.features[index],
            self.layout[index],
            self.tones[index],
            None if self.attributes is None else [self.attributes[i] for i in chosen],
            None if self.prompt_similarity is None else self.prompt_similarity[index],
        )

    def save(self, folder: Path, name: str) -> None:
        """Write `name.safetensors` and, with attributes, `name.json`."""
        tensors = {"features": self.features, "layout": self.layout, "tones": self.tones}
        if self.prompt_similarity is not None:
            tensors["prompt_similarity"] = self.prompt_similarity
        save_file({key: value.contiguous() for key, value in tensors.items()}, folder / f"{name}.safetensors")
        if self.attributes is not None:
            columns = {key: [row[key] for row in self.attributes] for key in self.attributes[0]}
            write_json(folder / f"{name}.json", columns)

    @classmethod
    def load(cls, folder: Path, name: str) -> Self:
        """The inverse of `save`."""
        listed = folder / f"{name}.json"
        columns = read_json(listed) if listed.is_file() else None
        attributes: Any = columns and [
            dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)
        ]
        return cls(**load_file(folder / f"{name}.safetensors"), attributes=attributes)


@torch.no_grad()
def observe(pixels: Tensor, network: FeatureNetwork, prompts: Sequence[str]) -> Observations:
    """Observe images, uint8 `[N, H, W, 3]`, in batches; prompts: the prompt of each image.

    The results are on the CPU.
    """
    size = images_at_once()
    batches = zip(torch.split(pixels, size), in_parts(prompts, size), strict=True)
    parts = [look(from_uint8(some), network, theirs) for some, theirs in batches]
    attributes = [labels for part in parts for labels in part.attributes or ()]
    similarity = [part.prompt_similarity for part in parts if part.prompt_similarity is not None]
    return Observations(
        torch.cat([part.features for part in parts]),
        torch.cat([part.layout for part in parts]),
        torch.cat([part.tones for part in parts]),
        attributes if isinstance(network, AttributeClassifier) else None,
        torch.cat(similarity) if similarity else None,
    )


def look(images: Tensor, network: FeatureNetwork, prompts: Sequence[str]) -> Observations:
    """Observations of one batch, `[B, 3, H, W]` in [-1, 1]."""
    x = images.to(device())
    compared = getattr(network, "prompt_similarity", None)
    return Observations(
        network.features(x).float().cpu(),
        layout(x).float().cpu(),
        tones(x).cpu(),
        network.recognise(x) if isinstance(network, AttributeClassifier) else None,
        compared(x, list(prompts)).float().cpu() if compared else None,
    )
