"""Smaller networks, and where their weights come from."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import diffusers
from torch import nn

from fewstep.artifacts.manifest import Manifest
from fewstep.backbones.importing import import_teacher
from fewstep.backbones.protocol import Backbone
from fewstep.backbones.registry import open_backbone
from fewstep.compression.choice import reduction_of
from fewstep.compression.reduction import reduced
from fewstep.config.teacher import ImportTeacherConfig
from fewstep.core.files import whole_folder
from fewstep.core.paths import TEACHER
from tests import pipelines
from tests.miniature import draw_triplets

DEEP_UNET: dict[str, Any] = {
    "layers_per_block": 2,
    "block_out_channels": (4, 8, 8),
    "down_block_types": ("CrossAttnDownBlock2D",) * 3,
    "up_block_types": ("CrossAttnUpBlock2D",) * 3,
    "norm_num_groups": 2,
}


def cut(net: Any, size: str | None = None, blocks: Any = None, attention: Sequence[bool] = ()) -> Any:
    """The smaller network."""
    return reduced(net, reduction_of(net, size, blocks, attention))


def filled(net: nn.Module) -> nn.Module:
    """Every weight another constant: 1, 2, 3 ..."""
    for i, weight in enumerate(net.state_dict().values()):
        weight.fill_(i + 1)
    return net


def origins(large: nn.Module, small: nn.Module) -> dict[str, str]:
    """Weight of the small network -> the weight of the large one that has its value."""
    names = [*large.state_dict()]
    return {name: names[int(weight.flatten()[-1]) - 1] for name, weight in small.state_dict().items()}


def unet_of(cross: int) -> Any:
    """SD's U-Net with these settings."""
    return diffusers.UNet2DConditionModel(
        sample_size=pipelines.SIDE, cross_attention_dim=cross, attention_head_dim=2, **DEEP_UNET
    )


def teacher_from(folder: Path) -> Backbone:
    """Import a pipeline as the teacher, and draw its triplets."""
    with whole_folder(TEACHER) as staging:
        metadata = import_teacher(str(folder), "sd", ImportTeacherConfig(), staging)
        Manifest.seal(staging, "teacher", metadata, {})
    backbone = open_backbone(TEACHER)
    draw_triplets(backbone)
    return backbone
