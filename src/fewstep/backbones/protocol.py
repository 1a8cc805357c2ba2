"""Interface between a model family and the chain."""

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from torch import Tensor, nn

from fewstep.diffusion.denoiser import Conditions, Network, Prediction
from fewstep.diffusion.schedules import Schedule


class Backbone(Protocol):
    """A model family's adapter, opened on a teacher; its networks are on the device, in evaluation mode.

    Images are `[B, 3, H, W]` in [-1, 1]; latents have about unit variance.
    """

    schedule: Schedule
    """The noise schedule that the teacher was trained with."""
    prediction: Prediction
    """What the teacher's network predicts."""
    lora_targets: Sequence[str]
    """Name suffixes of the layers that low-rank adapters of this family usually target."""

    @property
    def net_part(self) -> str:
        """Name of the denoising network in the family's pipeline, `unet` or `transformer`."""

    @property
    def latent_shape(self) -> tuple[int, ...]:
        """Shape of one latent, e.g. (4, 64, 64)."""

    @property
    def net(self) -> nn.Module:
        """The teacher's denoising network."""

    def times(self, steps: int) -> list[float]:
        """`steps + 1` times from 1 to 0 at which the teacher is sampled."""

    def encode_prompts(self, prompts: Sequence[str]) -> Conditions:
        """Prompts as conditioning tensors `[B, ...]`; empty for a model that takes none."""

    def too_long(self, prompts: Sequence[str]) -> int:
        """Number of prompts that the text encoder truncates."""

    def unconditional(self, negative_prompt: str = "") -> Conditions:
        """Conditions of guidance's unconditional branch, batch size 1, as in the family's stock pipeline."""

    def release_encoders(self) -> None:
        """Free the memory of the text encoders; they are loaded again when a prompt is encoded."""

    def encode(self, images: Tensor) -> Tensor:
        """Images as latents."""

    def decode(self, latents: Tensor, decoder: nn.Module | None = None) -> Tensor:
        """Latents as images, about in [-1, 1], unclipped; decoder: replaces the family's decoder."""

    def network(self, net: nn.Module, inputs: Sequence[str] = ()) -> Network:
        """Wrap a denoising network of this family as a callable; inputs: see `Denoiser.inputs`."""

    def with_input(self, net: nn.Module, name: str) -> nn.Module:
        """A network that also takes the condition `name [B]`, after its present inputs.

        Its output does not depend on the new input before training. It may share weights with `net`.

        Raises UserError for a custom model without a method of its own for it.
        """

    def base_net(self, teacher: Path) -> nn.Module:
        """The denoising network of a teacher's artifact, read from the disk.

        Unlike `net` it belongs to the caller, and its weights are never rounded (training/half.py).
        """

    def load_net(self, folder: Path) -> nn.Module:
        """A network saved by `save_net`; strict."""

    def save_net(self, net: nn.Module, folder: Path) -> None:
        """Write the network in diffusers' format."""

    def decoder(self) -> nn.Module:
        """The module that `decode` runs, for a loss that differentiates through it."""
