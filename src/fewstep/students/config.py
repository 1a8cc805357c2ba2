"""Parameters that every distillation method has."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import ClassVar, Literal

from pydantic import Field, field_validator
from torch import Tensor, nn

from fewstep.config.base import Section
from fewstep.config.training import OptimizerConfig, StudentTrainingConfig
from fewstep.diffusion.denoiser import GUIDANCE
from fewstep.diffusion.sampling import STUDENTS, Guidance, Sampling
from fewstep.features.network import FeatureNetwork
from fewstep.training.lora import LoraSettings

Decode = Callable[..., Tensor]
"""Latents `[B, ...]` as images `[B, 3, H, W]`, as `Backbone.decode`."""
ImageLoss = Callable[[Tensor, Tensor, Decode, FeatureNetwork | None], dict[str, Tensor]]
"""Named terms of a loss of decoded images: a function of the student's and the teacher's latents, the decoder
and the feature network, which is None unless `needs_feature_maps`."""


class MethodConfig(Section):
    """Base of each method's `Config`."""

    from_: str = Field(alias="from")
    """The model it starts from: `teacher`, `reflow`, `halve-4`, a student's name ..."""
    training: StudentTrainingConfig
    data: Literal["triplets", "encoded"] = "triplets"
    """What it learns from: the teacher's end points, or real images (needs `encode_data.train`)."""
    lora: LoraSettings | None = None
    """Train a low-rank adapter instead of all weights; null: all."""
    guidance_embedding: bool = False
    """The student takes guidance as a condition; it learns from triplets whose `guidance` varies."""
    dtype: Literal["float32", "float16", "bfloat16"] = "float32"
    """Type of the network's weights on disk, to which they are rounded; adapters are always float32."""
    takes: ClassVar[tuple[str, ...]] = ()
    """Inputs beside its time that the method adds to the student's network: see `Denoiser.inputs`."""
    full_precision: ClassVar[bool] = False
    """See `Method.full_precision`."""
    learns_from: ClassVar[tuple[str, ...]] = ("triplets",)
    """Allowed values of `data`. A method that needs the noise of each end point allows triplets only."""

    @property
    def inputs(self) -> tuple[str, ...]:
        """Inputs beside its time that the student's network has at least; its start may have more."""
        return (*((GUIDANCE,) if self.guidance_embedding else ()), *self.takes)

    @property
    def allows_lora(self) -> bool:
        """Whether an adapter could be trained in the place of all weights."""
        return True

    @property
    def draws_guidance(self) -> bool:
        """Whether the method draws each sample's guidance scale itself, so that its data need none."""
        return False

    @property
    def further_networks(self) -> tuple[OptimizerConfig, ...]:
        """Optimizers of further trained networks of the teacher's size, such as a fake score."""
        return ()

    @property
    def averages(self) -> int:
        """Number of moving averages of the student's weights that the method evaluates."""
        return 0

    @property
    def gradient_passes(self) -> int:
        """Evaluations per sample whose activations the student's update keeps for its backward pass."""
        return 1

    @property
    def needs_feature_maps(self) -> bool:
        """Whether the loss compares feature maps of the network `features`."""
        return False

    @property
    def image_loss(self) -> ImageLoss | None:
        """The terms of the student's loss that decode images, in the step that has most of them; None: none.

        `fewstep check` calls it on fake tensors, to estimate the memory of a training.
        """
        return None

    @property
    def evaluates_start(self) -> bool:
        """Whether steps evaluate the start model, a frozen network, so that training/half.py rounds it."""
        return True

    @property
    def trains_denoiser(self) -> bool:
        """Whether the denoising network is trained."""
        return True

    def network(self, start: nn.Module) -> nn.Module:
        """The student's network before training and without further inputs: the start's, or a new module.

        Also called on the meta device, where only the architecture matters.
        """
        return start

    def sampling(self, start: Sampling, inputs: Sequence[str]) -> Sampling:
        """Sampling settings of the student, as `student_of` receives them.

        start: those of its start model. inputs: see `Denoiser.inputs`.
        """
        return replace(STUDENTS, guidance=Guidance.CONDITION) if GUIDANCE in inputs else STUDENTS

    @field_validator("data")
    @classmethod
    def _learns_from(cls, data: str) -> str:
        if data not in cls.learns_from:
            raise ValueError(f"this method learns from {' or '.join(cls.learns_from)} alone")
        return data
