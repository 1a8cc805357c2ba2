"""Features of the published FID: Inception v3 as clean-fid runs it (Parmar et al. 2022).

The network exists only as a TorchScript file, a format that is opened nowhere else in this package. Only the
published file is accepted, by its name and its content (SHA-256).
"""

from pathlib import Path
from typing import Self

import numpy as np
import torch
from cleanfid.inception_torchscript import InceptionV3W  # type: ignore[import-untyped]
from cleanfid.resize import build_resizer  # type: ignore[import-untyped]
from torch import Tensor, nn

from fewstep.artifacts.manifest import sha256
from fewstep.core.errors import UserError

FILE, WIDTH = "inception-2015-12-05.pt", 2048
URL = f"https://nvlabs-fi-cdn.nvidia.com/stylegan2-ada-pytorch/pretrained/metrics/{FILE}"
SHA256 = "f58cb9b6ec323ed63459aa4fb441fe750cfe39fafad6da5cb504a16f19e958f4"


class InceptionFeatures(nn.Module):
    """Pooled activations, 2048 of them; not differentiable (images are rounded to 8 bits first)."""

    name = FILE.removesuffix(".pt")
    kernel = "polynomial"
    opens = (f"file {FILE}",)
    channel_weights = None

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.network = InceptionV3W(str(folder), download=False)
        self.resize = build_resizer("clean")

    @torch.no_grad()
    def features(self, x: Tensor) -> Tensor:
        """`[B, 2048]`; x `[B, 3, H, W]` in [-1, 1], resized to 299 x 299 by clean-fid's bicubic filter."""
        images = ((x.permute(0, 2, 3, 1) + 1) * 127.5).round().clamp(0, 255).byte().cpu().numpy()
        resized = np.stack([self.resize(image) for image in images])
        features: Tensor = self.network(torch.from_numpy(resized).permute(0, 3, 1, 2).to(x.device))
        return features

    def maps(self, x: Tensor) -> list[Tensor]:
        """Raises UserError: the published network gives pooled features only."""
        raise UserError(f"{FILE}: gives no feature maps; a perceptual loss needs the judge or a teacher")

    @classmethod
    def untrained(cls, path: Path) -> Self:
        """The network of `open`: its architecture is part of the file."""
        return cls.open(path)

    @classmethod
    def open(cls, path: Path) -> Self:
        """Open the published file. Raises UserError when it is a different file."""
        if sha256(path) != SHA256:
            raise UserError(f"{path}: is not the published file (its SHA-256 is {SHA256}); get it from {URL}")
        return cls(path.parent).eval().requires_grad_(False)
