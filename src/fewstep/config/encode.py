"""`encode_data:` which splits of the data are encoded for methods that train on real images."""

from typing import Literal

from fewstep.config.base import Section


class EncodeConfig(Section):
    """One entry of `encode_data`, named by its split (`train`, `heldout`)."""

    dtype: Literal["float32", "float16", "bfloat16"] = "float32"
    """Type of latents and text embeddings on disk; half precision is enough for Stable Diffusion."""
