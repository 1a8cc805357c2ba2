"""Measures of a student while it trains: on fixed prompts and noise, against the teacher's images."""

from functools import cached_property

import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity

from fewstep.backbones.model import Model
from fewstep.core.hardware import device
from fewstep.data.noise import fresh_noise, noise_of
from fewstep.data.triplets import TripletBatch
from fewstep.features.layout import layout
from fewstep.features.network import FeatureNetwork, open_features
from fewstep.measures import TONES
from fewstep.measures.tone import tones
from fewstep.sampling.draw import Sampler
from fewstep.students.context import Context

IMAGES = 64
"""Number of triplets from whose noise and prompts the student draws images."""
PROMPTS, SAMPLES = 8, 4
"""Number of prompts, and of noise samples per prompt, for the measure `diversity`."""
DRIFT = 0.15
"""Relative change of a tone, against the teacher's images of the same noise, that triggers a warning."""


class Watch:
    """The fixed samples, and the features in which they are compared.

    Features are those of the training's feature network. Without one, they are mean colours of an 8 x 8 grid.
    """

    def __init__(self, context: Context) -> None:
        self.context = context
        self.noise = context.key("watch")

    @cached_property
    def triplets(self) -> TripletBatch:
        """The first IMAGES triplets in the training's order."""
        return self.context.triplet_batch(range(IMAGES))

    @cached_property
    def teachers(self) -> tuple[Tensor, Tensor]:
        """Features and tones of the teacher's end points."""
        images = self.context.backbone.decode(self.triplets.x_0)
        return self.features(images), tones(images)

    @cached_property
    def network(self) -> FeatureNetwork | None:
        """The feature network, on the device; None: there is none."""
        return open_features(self.context.features).to(device()) if self.context.features else None

    def features(self, images: Tensor) -> Tensor:
        """One row per image, `[B, D]`."""
        return (self.network.features(images) if self.network is not None else layout(images)).float()

    def measure(self, student: Model, steps: int) -> dict[str, float]:
        """The measures by name.

        agreement: root mean square distance of latents to the teacher's end points. feature_distance: 1 - the
        mean cosine similarity of features to those of the teacher's image of the same noise, both relative to
        the teacher's mean; 0 is identical. diversity: mean feature distance of two images of one prompt.
        brightness, saturation, contrast, detail: relative change against the teacher's images.
        """
        backbone, pairs = self.context.backbone, self.triplets
        sampler = Sampler(student, backbone, self.context.sampling)
        fresh = fresh_noise(self.noise, range(IMAGES), pairs.eps.shape[1:], pairs.eps.device)
        latents = sampler.latents(pairs.conditions, pairs.eps, steps, fresh)
        images = sampler.decode(latents)
        features, teachers_tones = self.teachers
        mean = features.mean(0)
        cosines = cosine_similarity(self.features(images) - mean, features - mean)
        change = tones(images).mean(0) / teachers_tones.mean(0).clamp(min=1e-6) - 1
        return {
            "agreement": (latents - pairs.x_0).square().mean().sqrt().item(),
            "feature_distance": 1 - cosines.mean().item(),
            "diversity": self.diversity(sampler, steps),
        } | dict(zip(TONES, change.tolist(), strict=True))

    def diversity(self, sampler: Sampler, steps: int) -> float:
        """Mean distance of the features of two images of one prompt, mean over PROMPTS prompts."""
        rows = torch.arange(PROMPTS).repeat_interleave(SAMPLES)
        conditions = {name: value[rows] for name, value in self.triplets.conditions.items()}
        indices, shape = range(len(rows)), sampler.backbone.latent_shape
        noise = noise_of(self.noise, indices, shape).to(device())
        fresh = fresh_noise(self.noise, range(IMAGES, IMAGES + len(rows)), shape, device())
        features = self.features(sampler.images(conditions, noise, steps, fresh))
        groups = features.reshape(PROMPTS, SAMPLES, -1)
        return torch.stack([torch.pdist(group).mean() for group in groups]).mean().item()
