"""Features from the teacher's autoencoder, which need neither labels nor a download."""

from pathlib import Path
from typing import Any, Self

from torch import Tensor, nn

from fewstep.artifacts.manifest import Manifest
from fewstep.backbones.configurations import CONFIG, read_object
from fewstep.core.errors import UserError


class AutoencoderFeatures(nn.Module):
    """The encoder of a diffusers autoencoder: activations of its down blocks and any mid block."""

    name = "autoencoder"
    kernel = "polynomial"
    opens = ("artifact teacher",)
    channel_weights = None

    def __init__(self, encoder: Any) -> None:
        super().__init__()
        self.encoder = encoder

    def maps(self, x: Tensor) -> list[Tensor]:
        """Activations after each of these blocks, fine to coarse; x `[B, 3, H, W]` in [-1, 1]."""
        hidden = self.encoder.conv_in(x)
        middle = getattr(self.encoder, "mid_block", None)
        maps = []
        for part in (*self.encoder.down_blocks, *([middle] if middle is not None else [])):
            hidden = part(hidden)
            maps.append(hidden)
        return maps

    def features(self, x: Tensor) -> Tensor:
        """The last activations averaged over space, `[B, channels]`; x `[B, 3, H, W]` in [-1, 1]."""
        return self.maps(x)[-1].mean((2, 3))

    @classmethod
    def untrained(cls, folder: Path) -> Self:
        """The encoder that a teacher artifact describes."""
        from diffusers import AutoModel

        return cls(AutoModel.from_config(read_object(folder / "vae" / CONFIG)).encoder)

    @classmethod
    def open(cls, folder: Path) -> Self:
        """The frozen encoder of a teacher artifact. Raises UserError when it is damaged or has no VAE."""
        from diffusers import AutoModel

        Manifest.open(folder, "teacher")
        if not (folder / "vae").is_dir():
            raise UserError(f"{folder}: this teacher has no vae/; take features from the judge")
        vae = AutoModel.from_pretrained(str(folder / "vae"), use_safetensors=True, local_files_only=True)
        return cls(vae.encoder).float().eval().requires_grad_(False)
