"""CLIP from a local folder (Radford et al. 2021): the features of CMMD, and the CLIP score of prompts.

CMMD (Jayasumana et al. 2024) is published with ViT-L/14 at 336 pixels.
"""

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity, normalize

from fewstep.core.errors import UserError
from fewstep.features.image_transformer import ImageTransformer, Preprocessor, load

TOKENIZERS = (("tokenizer.json",), ("vocab.json", "merges.txt"))
"""Files of a tokenizer; one of the sets is needed."""


class Clip(ImageTransformer):
    """Image embeddings of unit length; embeddings of prompts where the folder holds a tokenizer."""

    kernel = "gaussian"
    opens = ("model_type clip",)

    def __init__(self, model: Any, preprocessor: Preprocessor, folder: Path) -> None:
        """model: a CLIPModel. folder: of its tokenizer."""
        super().__init__(model.vision_model, model.config.vision_config, preprocessor)
        self.image_projection = model.visual_projection
        self.text_model, self.text_projection = model.text_model, model.text_projection
        self.folder = folder

    @torch.no_grad()
    def features(self, x: Tensor) -> Tensor:
        """Image embeddings of unit length, `[B, projection_dim]`; x `[B, 3, H, W]` in [-1, 1]."""
        pooled = self.network(pixel_values=self.prepare(x)).pooler_output
        return normalize(self.image_projection(pooled), dim=1)

    @torch.no_grad()
    def prompt_similarity(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        """CLIP score of each image and its prompt, `[B]` in [0, 100].

        100 max(cos, 0), as in torchmetrics; Hessel et al. 2021 scale by 2.5 and put "A photo depicts" before
        each text. images: `[B, 3, H, W]` in [-1, 1]. A prompt that exceeds the text encoder's context length
        is truncated. Raises UserError where the folder has no tokenizer.
        """
        tokens = self.tokenizer(
            list(prompts),
            padding=True,
            truncation=True,
            max_length=self.text_model.config.max_position_embeddings,
            return_tensors="pt",
        ).to(images.device)
        pooled = self.text_model(tokens["input_ids"], attention_mask=tokens["attention_mask"]).pooler_output
        similarity = cosine_similarity(self.features(images), self.text_projection(pooled))
        return 100 * similarity.clamp(min=0)

    @cached_property
    def tokenizer(self) -> Any:
        """Tokenizer of the prompts. Raises UserError where the folder has none."""
        from transformers import CLIPTokenizer

        # transformers silently creates an empty vocabulary where the files are missing.
        if not any(all((self.folder / name).is_file() for name in names) for names in TOKENIZERS):
            raise UserError(
                f"{self.folder}: has no tokenizer (tokenizer.json, or vocab.json and merges.txt); "
                "the CLIP score needs it, so fetch it together with the weights"
            )
        return CLIPTokenizer.from_pretrained(self.folder, local_files_only=True)

    @classmethod
    def untrained(cls, folder: Path) -> Self:
        """The network that a folder describes. Raises UserError where its preprocessor is missing."""
        from transformers import CLIPConfig, CLIPModel

        config = CLIPConfig.from_pretrained(folder, local_files_only=True)
        return cls(CLIPModel(config), Preprocessor.read(folder), folder)

    @classmethod
    def open(cls, folder: Path) -> Self:
        """A folder saved by transformers' CLIPModel. Raises UserError naming what is wrong."""
        from transformers import CLIPModel

        preprocessor, model = Preprocessor.read(folder), load(CLIPModel, folder)
        side = model.config.vision_config.image_size
        if preprocessor.side != side:
            raise UserError(
                f"{folder}: its preprocessor makes images of side {preprocessor.side}, its network takes "
                f"{side}; the files belong to two models"
            )
        return cls(model, preprocessor, folder).eval().requires_grad_(False)
