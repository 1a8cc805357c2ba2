"""Features of a denoiser for a discriminator, on real diffusers networks."""

from pathlib import Path
from typing import Any

import pytest
import torch

from fewstep.backbones.model import open_model
from fewstep.core.keyed import Key
from fewstep.core.paths import TEACHER
from fewstep.students.discriminator import Features, head_on
from tests.miniature import import_miniature


@pytest.mark.parametrize("family", ["sd", "sd3"])
def test_features_are_of_the_middle_block_or_the_output(
    family: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "no")
    backbone = import_miniature(family)
    model = open_model(TEACHER, backbone)
    x_t = torch.randn(2, *backbone.latent_shape, generator=torch.Generator().manual_seed(0))
    t = torch.tensor([0.3, 0.8])
    with torch.no_grad():
        conditions = backbone.encode_prompts(["a red star", "a blue circle"])
        features = Features(model.net, model.denoiser)(x_t, t, conditions)
        kept: list[torch.Tensor] = []
        if family == "sd":
            middle: Any = model.net.mid_block
            middle.register_forward_hook(lambda module, inputs, output: kept.append(output))
        raw = backbone.network(model.net)(x_t, backbone.schedule.network_time(t), conditions)
        assert torch.allclose(features, kept[0] if family == "sd" else raw, atol=1e-4)
        head = head_on(
            Features(model.net, model.denoiser),
            x_t[:1],
            {k: v[:1] for k, v in conditions.items()},
            Key(0, "head"),
        )
        assert head(features).shape == (2, 1, *features.shape[2:])
