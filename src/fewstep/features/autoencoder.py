"""Features from a teacher's own autoencoder: for pictures without labels, and with no download."""

from pathlib import Path
from typing import TYPE_CHECKING, Self

from torch import Tensor, nn

from fewstep.artifacts.manifest import Manifest
from fewstep.errors import UserError

if TYPE_CHECKING:
    from diffusers.models.autoencoders.vae import Encoder


class AutoencoderFeatures(nn.Module):
    """The encoder of a diffusers `AutoencoderKL`, read at its down blocks and its middle."""

    name = "autoencoder"

    def __init__(self, encoder: "Encoder") -> None:
        super().__init__()
        self.encoder = encoder

    def maps(self, x: Tensor) -> list[Tensor]:
        """Activations after each down block and the middle, fine to coarse; x `[B, 3, H, W]` in [-1, 1]."""
        hidden = self.encoder.conv_in(x)
        maps = []
        for part in (*self.encoder.down_blocks, self.encoder.mid_block):
            hidden = part(hidden)
            maps.append(hidden)
        return maps

    def features(self, x: Tensor) -> Tensor:
        """The middle's activations averaged over space, `[B, channels]`; x `[B, 3, H, W]` in [-1, 1]."""
        return self.maps(x)[-1].mean((2, 3))

    @classmethod
    def open(cls, folder: Path) -> Self:
        """The frozen encoder of a teacher artifact. Raises UserError when it is wrong or has none."""
        from diffusers import AutoencoderKL

        Manifest.open(folder, "teacher")
        if not (folder / "vae").is_dir():
            raise UserError(f"{folder}: this teacher has no vae/; take features from the judge")
        vae = AutoencoderKL.from_pretrained(folder / "vae", use_safetensors=True, local_files_only=True)
        return cls(vae.encoder).float().eval().requires_grad_(False)
