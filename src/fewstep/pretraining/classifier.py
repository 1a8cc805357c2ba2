"""Training of the attribute classifier, whose features measure images."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from fewstep.config.classifier import ClassifierConfig
from fewstep.core.hardware import upload
from fewstep.core.keyed import Key
from fewstep.data.pixels import image_batch
from fewstep.data.shards import ImageRecord
from fewstep.data.stream import Stream
from fewstep.features.attribute_classifier import AttributeClassifier
from fewstep.training.method import Group, Method, Rows

UNKNOWN = -100
"""Index of a value that a sample does not have; the loss leaves it out."""


@dataclass(frozen=True)
class Batch:
    """Images `[B, 3, H, W]` and, per attribute, the index of its value `[B]`, UNKNOWN where there is none."""

    images: Tensor
    labels: dict[str, Tensor]


class ClassifierTraining(Method):
    """Cross-entropy of every attribute, on images with a little noise."""

    def __init__(
        self,
        classifier: AttributeClassifier,
        config: ClassifierConfig,
        images: Stream[ImageRecord],
        seed: int,
    ) -> None:
        self.classifier, self.config, self.images = classifier, config, images
        self.noise = Key(seed, "judge/noise")
        self.index = {
            attribute: {value: i for i, value in enumerate(values)}
            for attribute, values in classifier.labels.items()
        }
        self.training = config.training
        self.groups = {"judge": Group({"judge": classifier}, config.training)}

    def batch(self, rows: Rows) -> Batch:
        samples = self.images.rows(rows.positions)
        x = image_batch(samples)
        noise = torch.from_numpy(self.noise.normal(rows.positions, x.shape[1:]))
        labels = {
            attribute: torch.tensor([index.get(row.get(attribute, ""), UNKNOWN) for row in rows_of(samples)])
            for attribute, index in self.index.items()
        }
        return Batch(
            upload(x + self.config.noise * noise),
            {name: upload(value) for name, value in labels.items()},
        )

    def losses(self, group: str, batch: Batch, step: int) -> dict[str, Tensor]:
        logits = self.classifier(batch.images)
        return {name: known_entropy(logits[name].float(), labels) for name, labels in batch.labels.items()}


def rows_of(samples: Sequence[ImageRecord]) -> list[dict[str, str]]:
    """All attributes of each sample: those that its caption names, and the hidden ones."""
    return [{**(sample.labels or {}), **(sample.hidden or {})} for sample in samples]


def known_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Mean cross-entropy over the rows whose value is known; 0 where none is."""
    known = (labels != UNKNOWN).sum().clamp(min=1)
    return cross_entropy(logits, labels, ignore_index=UNKNOWN, reduction="sum") / known
