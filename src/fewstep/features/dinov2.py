"""DINOv2 from a local folder (Oquab et al. 2023): the features of FD-DINOv2.

FD-DINOv2 (Stein et al. 2023) is published with ViT-L/14 at 224 pixels, without registers.
"""

from pathlib import Path
from typing import Self

import torch
from torch import Tensor

from fewstep.features.image_transformer import ImageTransformer, Preprocessor, load


class Dinov2(ImageTransformer):
    """The normalised class token, with or without registers."""

    kernel = "polynomial"
    opens = ("model_type dinov2", "model_type dinov2_with_registers")

    @torch.no_grad()
    def features(self, x: Tensor) -> Tensor:
        """The class token after the last normalisation, `[B, hidden_size]`; x `[B, 3, H, W]` in [-1, 1]."""
        features: Tensor = self.network(pixel_values=self.prepare(x)).pooler_output
        return features

    @classmethod
    def untrained(cls, folder: Path) -> Self:
        """The network that a folder describes. Raises UserError where its preprocessor is missing."""
        from transformers import AutoConfig, AutoModel

        config = AutoConfig.from_pretrained(folder, local_files_only=True)
        return cls(AutoModel.from_config(config), config, Preprocessor.read(folder))

    @classmethod
    def open(cls, folder: Path) -> Self:
        """A folder saved by transformers. Raises UserError naming what is wrong."""
        from transformers import AutoModel

        preprocessor, model = Preprocessor.read(folder), load(AutoModel, folder)
        return cls(model, model.config, preprocessor).eval().requires_grad_(False)
