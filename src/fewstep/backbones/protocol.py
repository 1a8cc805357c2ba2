"""What the chain asks of a model family."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

from torch import Tensor, nn

from fewstep.diffusion.denoiser import Conditions, Network, Prediction
from fewstep.diffusion.schedules import Schedule


class Backbone(Protocol):
    """A model family's adapter, opened on a teacher; its networks are on the device, in evaluation mode.

    Images are `[B, 3, H, W]` in [-1, 1]; latents have about unit variance.
    """

    schedule: Schedule
    """The schedule the teacher was made for."""
    prediction: Prediction
    """What the teacher's network predicts."""
    lora_targets: Sequence[str]
    """Ends of the names of the layers that this family's adapters usually are on."""

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
        """How many prompts have an end that the text encoder does not read."""

    def unconditional(self, negative_prompt: str = "") -> Conditions:
        """The other side of guidance, batch size 1: as the family's own pipeline has it."""

    def encode(self, images: Tensor) -> Tensor:
        """Images as latents."""

    def decode(self, latents: Tensor, decoder: nn.Module | None = None) -> Tensor:
        """Latents as images, about in [-1, 1], unclipped; decoder: a model's own, in the family's place."""

    def network(self, net: nn.Module, inputs: Sequence[str] = ()) -> Network:
        """How a denoising network of this family is called; inputs: see `Denoiser.inputs`."""

    def with_input(self, net: nn.Module, name: str) -> nn.Module:
        """A copy that also takes the condition `name [B]`, after those it takes, and does not heed it yet.

        Raises UserError when networks of this family have no place for it.
        """

    def load_net(self, folder: Path) -> nn.Module:
        """A network saved by `save_net`; strict."""

    def save_net(self, net: nn.Module, folder: Path) -> None:
        """Write the network in diffusers' format."""

    def decoder(self) -> nn.Module:
        """What `decode` runs, for a loss that differentiates through it."""


class LowRankAdapter(Protocol):
    """A low-rank adapter; see training/lora.py."""

    @property
    def facts(self) -> dict[str, Any]:
        """What a manifest says of it: rank, alpha, targets, number of trained parameters."""

    def save(self, folder: Path, part: str) -> None:
        """Write it in diffusers' format; part: of the pipeline that it is for."""
