"""The rule by which a network is made smaller, found by its class."""

from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn

from fewstep.compression.surgery import FULL, Surgery
from fewstep.compression.transformer import STACKS, transformer_surgery
from fewstep.compression.unet import unet_surgery
from fewstep.core.errors import UserError

UNET = "UNet2DConditionModel"


def surgery_of(net: nn.Module, size: str | None, blocks: Mapping[str, int | Sequence[int]] | None) -> Surgery:
    """size: of a U-Net; blocks: of a transformer; one of them is None.

    Raises UserError where the network cannot be made so; see `unet_surgery`, `transformer_surgery`.
    """
    kind = type(net).__name__
    config: Mapping[str, Any] = getattr(net, "config", {})
    if kind == UNET and size is not None:
        return unet_surgery(config, size)
    if kind in STACKS and (blocks is not None or size == FULL):
        return transformer_surgery(kind, config, blocks or {})
    if kind == UNET:
        raise UserError(f"blocks: a {kind} is made smaller by `size`")
    if kind in STACKS:
        raise UserError(f"size = {size!r}: a {kind} is made smaller by `blocks`")
    raise UserError(f"a {kind} cannot be made smaller; there are rules for {', '.join([UNET, *STACKS])}")
