"""A small classifier of attributes, trained on labelled images; its artifact is `artifacts/judge`.

It reports whether a generated image shows what its prompt asks for. Its activations serve as features for the
Frechet distance and as maps for a perceptual loss.
"""

from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any, Self

import torch
from pydantic import Field
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from fewstep.artifacts.manifest import Manifest
from fewstep.config.base import Section, validate
from fewstep.core.errors import UserError
from fewstep.core.files import read_json, whole_folder, write_json

GROUPS = 8
Width = Annotated[int, Field(ge=GROUPS, multiple_of=GROUPS)]


class ClassifierNetworkConfig(Section):
    """Everything needed to build the network; `config.json` of its artifact."""

    labels: dict[str, tuple[str, ...]] = Field(min_length=1)
    """Attribute -> its values, in the order of the logits."""
    hidden: tuple[str, ...] = ()
    """Names of the attributes that captions do not mention."""
    widths: tuple[Width, ...] = Field((32, 64, 128), min_length=1)
    """Channels at full resolution, half of it, a quarter ..."""
    feature_dim: int = Field(64, ge=1)


class AttributeClassifier(nn.Module):
    """Convolutions at one scale per width, pooled over space, one linear layer for all attributes.

    It uses GroupNorm because an image's predictions must not depend on the rest of its batch.
    """

    name = "judge"
    kernel, opens = "polynomial", ("artifact judge",)
    channel_weights = None

    def __init__(
        self,
        labels: Mapping[str, Sequence[str]],
        widths: Sequence[int] = (32, 64, 128),
        feature_dim: int = 64,
        hidden: Sequence[str] = (),
    ) -> None:
        super().__init__()
        # Attributes are sorted as in config.json, so that saving and loading keeps the order of the logits.
        values = {attribute: tuple(labels[attribute]) for attribute in sorted(labels)}
        self.config = ClassifierNetworkConfig(
            labels=values, hidden=tuple(sorted(hidden)), widths=tuple(widths), feature_dim=feature_dim
        )
        self.stem = block(3, widths[0], stride=1)
        self.stages = nn.ModuleList(
            nn.Sequential(block(before, after, stride=2), block(after, after, stride=1))
            for before, after in pairwise(widths)
        )
        # Without LayerNorm, training for confident predictions inflates the features and all distances.
        self.penultimate = nn.Sequential(
            nn.Linear(2 * widths[-1], feature_dim),
            nn.LayerNorm(feature_dim, elementwise_affine=False),
            nn.SiLU(),
        )
        self.heads = nn.Linear(feature_dim, sum(map(len, values.values())))

    @property
    def labels(self) -> dict[str, tuple[str, ...]]:
        """Attribute -> its values, in the order of the logits."""
        return self.config.labels

    def maps(self, x: Tensor) -> list[Tensor]:
        """Activations at each scale, `[B, widths[i], H / 2^i, W / 2^i]`; x `[B, 3, H, W]` in [-1, 1]."""
        maps = [self.stem(x)]
        for stage in self.stages:
            maps.append(stage(maps[-1]))
        return maps

    def features(self, x: Tensor) -> Tensor:
        """Activations of the penultimate layer, `[B, feature_dim]`; x `[B, 3, H, W]` in [-1, 1]."""
        last = self.maps(x)[-1]
        # The mean captures the background, the maximum a small shape on it.
        features: Tensor = self.penultimate(torch.cat([last.mean((2, 3)), last.amax((2, 3))], dim=1))
        return features

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """Attribute -> logits `[B, values]`; x `[B, 3, H, W]` in [-1, 1]."""
        logits = self.heads(self.features(x)).split([len(values) for values in self.labels.values()], dim=1)
        return dict(zip(self.labels, logits, strict=True))

    @torch.no_grad()
    def recognise(self, x: Tensor) -> list[dict[str, str]]:
        """Per image, attribute -> the most likely value; x `[B, 3, H, W]` in [-1, 1]."""
        chosen = {attribute: logits.argmax(dim=1).tolist() for attribute, logits in self(x).items()}
        return [
            {attribute: self.labels[attribute][rows[i]] for attribute, rows in chosen.items()}
            for i in range(len(x))
        ]

    def save(
        self,
        folder: Path,
        resolution: int,
        inputs: Mapping[str, Path],
        metadata: Mapping[str, Any] | None = None,
    ) -> None:
        """Write the artifact.

        resolution: of its training images. inputs: name -> folder. metadata: for the manifest.
        """
        with whole_folder(folder) as staging:
            weights = {name: weight.contiguous() for name, weight in self.state_dict().items()}
            save_file(weights, staging / "model.safetensors")
            write_json(staging / "config.json", self.config.model_dump(mode="json"))
            properties = {
                "labels": self.labels,
                "feature_dim": self.config.feature_dim,
                "parameters": sum(weight.numel() for weight in self.parameters()),
                "resolution": resolution,
            }
            Manifest.seal(staging, "judge", properties | dict(metadata or {}), inputs)

    @classmethod
    def untrained(cls, folder: Path) -> Self:
        """The network that an artifact describes. Raises UserError naming the key that is wrong."""
        described = folder / "config.json"
        return cls(**dict(validate(ClassifierNetworkConfig, read_json(described), "", described)))

    @classmethod
    def open(cls, folder: Path) -> Self:
        """Read what `save` wrote, frozen. Raises UserError naming the file that is wrong."""
        Manifest.open(folder, "judge")
        classifier = cls.untrained(folder)
        try:
            classifier.load_state_dict(load_file(folder / "model.safetensors"))
        except RuntimeError as error:
            raise UserError(
                f"{folder}: not this network's weights ({error}); rebuild with `dvc repro`"
            ) from None
        return classifier.eval().requires_grad_(False)


def block(before: int, after: int, stride: int) -> nn.Sequential:
    """Convolution, normalisation, activation: `[B, before, H, W]` -> `[B, after, H / stride, W / stride]`."""
    return nn.Sequential(
        nn.Conv2d(before, after, 3, stride, padding=1, bias=False), nn.GroupNorm(GROUPS, after), nn.SiLU()
    )
