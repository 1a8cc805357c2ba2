"""Opens a teacher whose networks are only evaluated, their weights in half precision (training/half.py)."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from torch import nn

from fewstep.backbones.pipeline import DiffusersBackbone
from fewstep.backbones.protocol import Backbone
from fewstep.backbones.registry import open_backbone
from fewstep.training.half import halve_frozen


def frozen_backbone(teacher: Path) -> Backbone:
    """A teacher's adapter whose denoiser, autoencoder and text encoders are frozen.

    Their weights are rounded in host memory, before they are moved to the device. The networks must be called
    under autocast. Raises UserError when the artifact is incomplete.
    """
    backbone = open_backbone(teacher)
    if isinstance(backbone, DiffusersBackbone):
        backbone.parts = {name: partial(frozen, load) for name, load in backbone.parts.items()}
    return backbone


def frozen(load: Callable[[], Any]) -> Any:
    """A part of a pipeline; its weights are frozen and rounded if it is a network."""
    part = load()
    if isinstance(part, nn.Module):
        halve_frozen([part.requires_grad_(False)])
    return part
