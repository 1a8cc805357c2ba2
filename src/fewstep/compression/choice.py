"""The rule by which a network is made smaller, chosen by its class."""

from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn

from fewstep.compression.reduction import FULL, Reduction
from fewstep.compression.transformer import STACKS, transformer_reduction
from fewstep.compression.unet import unet_reduction
from fewstep.core.errors import UserError

UNET = "UNet2DConditionModel"


def reduction_of(
    net: nn.Module,
    size: str | None,
    blocks: Mapping[str, int | Sequence[int]] | None,
    attention: Sequence[bool] = (),
) -> Reduction:
    """size, attention: of a U-Net, see `unet_reduction`; blocks: of a transformer. size or blocks is None.

    Raises UserError where the network cannot be made so; see `unet_reduction`, `transformer_reduction`.
    """
    kind = type(net).__name__
    config: Mapping[str, Any] = getattr(net, "config", {})
    if kind == UNET and size is not None:
        return unet_reduction(config, size, attention)
    if attention:
        raise UserError(f"attention: removed from U-Nets alone, this is a {kind}")
    if kind in STACKS and (blocks is not None or size == FULL):
        return transformer_reduction(kind, config, blocks or {})
    if kind == UNET:
        raise UserError(f"blocks: a {kind} is made smaller by `unet`")
    if kind in STACKS:
        raise UserError(f"unet = {size!r}: a {kind} is made smaller by `blocks`")
    key = "blocks" if size is None else "unet"
    raise UserError(
        f"{key}: no rule to make a {kind} smaller; there are rules for {', '.join([UNET, *STACKS])}"
    )
