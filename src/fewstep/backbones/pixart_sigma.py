"""PixArt-Sigma: PixArt-alpha with longer prompts and SDXL's autoencoder (Chen et al. 2024)."""

from fewstep.backbones.pixart import PixArt


class PixArtSigma(PixArt):
    """See `PixArt`; without size conditions, which its network's configuration says."""

    pipeline_class = "PixArtSigmaPipeline"
    prompt_length = 300


Adapter = PixArtSigma
