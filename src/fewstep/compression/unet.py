"""Block-removed U-Nets: BK-SDM (Kim et al. 2023) and the U-Net of SDXS (Song et al. 2024).

| size  | layers per block | removed besides                                                              |
|-------|------------------|------------------------------------------------------------------------------|
| base  | 1                |                                                                              |
| small | 1                | the middle block                                                             |
| tiny  | 1                | the middle block and the lowest resolution                                   |
| sdxs  | 1                | as tiny; the attention at the highest resolution                             |

A down block keeps its first layer. An up block keeps its first and its last one: the input of the last has
other channels than those of the layers between.

Any size but `sdxs` may also be without the attention to the text at chosen resolutions, as SDXS is at the
highest: both blocks of a level keep their residual layers, and lose their transformer layers.

All weights of these sizes are in the larger network, with one exception. Where the lowest resolution is
removed and was wider than the next (SDXL; not SD 1 and 2), the first layer of the first up block takes the
output of the last down block in the place of a wider one. Its weights for these channels start at 0, so that
before training it uses the skip connection alone. Nothing is drawn at random.

The published smaller U-Nets of SDXL are in compression/published.py.
"""

from collections.abc import Mapping, Sequence
from itertools import chain
from typing import Any

from fewstep.compression import published
from fewstep.compression.reduction import FULL, Reduction
from fewstep.core.errors import UserError

SIZES = (FULL, "base", "small", "tiny", "sdxs", *published.PUBLISHED)
ALIASES = {"sd_small": "base", "sd_tiny": "tiny"}
"""Names of segmind's distill-sd -> those of BK-SDM."""
LOWEST_REMOVED = ("tiny", "sdxs")
WITH_ATTENTION = ("CrossAttnDownBlock2D", "CrossAttnUpBlock2D")
WITHOUT_ATTENTION = ("DownBlock2D", "UpBlock2D")
"""The same two blocks of a level without their transformer layers."""
PER_LEVEL = (
    "only_cross_attention",
    "cross_attention_dim",
    "attention_head_dim",
    "num_attention_heads",
    "transformer_layers_per_block",
)
"""Settings that may be a list with an entry per level, from the highest resolution down."""
NO_TEXT = "no block with attention to the text would be left"


def unet_reduction(config: Mapping[str, Any], size: str, attention: Sequence[bool] = ()) -> Reduction:
    """What makes a `UNet2DConditionModel` of this configuration one of this size.

    attention: for each level that stays, from the highest resolution down, whether it keeps its attention to
    the text; empty: as the size says.

    Raises UserError where a size has no meaning for the configuration; the message has those that have. So
    too where `attention` has another number of levels, removes what is not there, or leaves none.
    """
    size = ALIASES.get(size, size)
    if why := fault(config, size):
        possible = ", ".join(each for each in SIZES if not fault(config, each))
        raise UserError(f"unet = {size!r}: {why}; possible sizes of this network: {possible}")
    if attention and (why := attention_fault(config, size, attention)):
        raise UserError(f"attention = {[*attention]}: {why}")
    if size in published.PUBLISHED:
        return published.published_reduction(config, size)
    removed = int(size in LOWEST_REMOVED)
    kept = len(config["block_out_channels"]) - removed
    layers = layers_of(config)
    features = {f"down_blocks.{i}": f"down_blocks.{i}" for i in range(kept)}
    if removed:
        features[f"down_blocks.{kept - 1}"] = last_layer(config, kept - 1)
    if size in (FULL, "base") and config["mid_block_type"] is not None:
        features["mid_block"] = "mid_block"
    features |= {f"up_blocks.{i}": f"up_blocks.{i + removed}" for i in range(kept)}
    if size == FULL:
        return Reduction(block_types(config, size, attention), lambda name: name, features)

    def source(name: str) -> str:
        match name.split("."):
            case ["up_blocks", block, ("resnets" | "attentions") as kind, layer, *rest]:
                i = int(block) + removed
                # A U-Net has one layer more in an up block than in the down block of its level.
                j = layers[-1 - i] if layer == "1" else 0
                return ".".join(["up_blocks", str(i), kind, str(j), *rest])
            case ["up_blocks", block, *rest]:
                return ".".join(["up_blocks", str(int(block) + removed), *rest])
        return name

    changes = changes_of(config, size, kept) | block_types(config, size, attention)
    return Reduction(changes, source, features, first_up_layer(config, kept))


def block_types(config: Mapping[str, Any], size: str, attention: Sequence[bool] = ()) -> dict[str, Any]:
    """The kinds of the small network's down and up blocks; attention: see `unet_reduction`."""
    removed = int(size in LOWEST_REMOVED)
    down, up = [*config["down_block_types"]], [*config["up_block_types"][removed:]]
    down = down[: len(up)]
    lost = [0] if size == "sdxs" else [level for level, stays in enumerate(attention) if not stays]
    for level in lost:
        down[level], up[-1 - level] = WITHOUT_ATTENTION
    return {"down_block_types": tuple(down), "up_block_types": tuple(up)}


def changes_of(config: Mapping[str, Any], size: str, kept: int) -> dict[str, Any]:
    """The small network's settings besides `block_types`; kept: number of its levels."""
    removed = len(config["block_out_channels"]) - kept
    changes: dict[str, Any] = {
        "layers_per_block": 1,
        "block_out_channels": tuple(config["block_out_channels"][:kept]),
    }
    for key in PER_LEVEL:
        if isinstance(config.get(key), Sequence):
            changes[key] = tuple(first_layer(value) for value in config[key][:kept])
    if config.get(published.REVERSED) is not None:
        up = config[published.REVERSED][removed:]
        changes[published.REVERSED] = tuple(outer_layers(value) for value in up)
    if size != "base":
        changes["mid_block_type"] = None
    return changes


def first_up_layer(config: Mapping[str, Any], kept: int) -> dict[str, int]:
    """`Reduction.channels` of the first up block's first layer; kept: number of levels that stay."""
    widths, layer = config["block_out_channels"], "up_blocks.0.resnets.0"
    if kept == len(widths) or widths[kept] == widths[kept - 1]:
        return {}
    names = ("norm1.weight", "norm1.bias", "conv1.weight", "conv_shortcut.weight")
    return {f"{layer}.{name}": widths[kept - 1] for name in names}


def first_layer(value: Any) -> Any:
    """A level's entry for the first layer of a block, where it has one per layer; else the entry."""
    return (value[0],) if isinstance(value, Sequence) else value


def outer_layers(value: Any) -> Any:
    """A level's entry for the first and the last layer of an up block, where it has one per layer."""
    return (value[0], value[-1]) if isinstance(value, Sequence) else value


def layers_of(config: Mapping[str, Any]) -> tuple[int, ...]:
    """Layers of each down block, from the highest resolution down."""
    layers, levels = config["layers_per_block"], len(config["block_out_channels"])
    return (layers,) * levels if isinstance(layers, int) else tuple(layers)


def last_layer(config: Mapping[str, Any], i: int) -> str:
    """The layer of down block i whose output its downsampler takes: a block without one learns it."""
    kind = "attentions" if attends(config["down_block_types"][i]) else "resnets"
    return f"down_blocks.{i}.{kind}.{layers_of(config)[i] - 1}"


def attends(block: str) -> bool:
    """Whether blocks of this type have attention to the text."""
    return "CrossAttn" in block


def fault(config: Mapping[str, Any], size: str) -> str | None:
    """Why a network of this configuration has no such size; None where it has."""
    if size == FULL:
        return None
    if size in published.PUBLISHED:
        return published.fault(config, size)
    if size == "base":
        return None if max(layers_of(config)) > 1 else "every block has one layer already"
    if size == "small":
        return None if config["mid_block_type"] is not None else "there is no middle block to be removed"
    if len(config["down_block_types"]) < 2:
        return "there is one resolution, so none can be removed"
    if size == "sdxs" and not has_attention(config, 0):
        return "there is no attention at the highest resolution that could be removed"
    return None if any(map(attends, chain(*block_types(config, size).values()))) else NO_TEXT


def attention_fault(config: Mapping[str, Any], size: str, attention: Sequence[bool]) -> str | None:
    """Why these levels cannot keep and lose their attention; None where they can."""
    if size == "sdxs" or size in published.PUBLISHED:
        return f"unet: {size} says itself where its attention is"
    levels = len(config["down_block_types"]) - (size in LOWEST_REMOVED)
    if len(attention) != levels:
        return f"expected an entry for each of the {levels} resolutions that stay"
    for level, stays in enumerate(attention):
        if not stays and not has_attention(config, level):
            return f"there is no attention at resolution {level + 1} that could be removed"
    blocks = [*chain(*block_types(config, size, attention).values())]
    if size in (FULL, "base"):
        blocks.append(config["mid_block_type"] or "")
    return None if any(map(attends, blocks)) else NO_TEXT


def has_attention(config: Mapping[str, Any], level: int) -> bool:
    """Whether both blocks of a level, counted from the highest resolution, have attention to the text."""
    return (config["down_block_types"][level], config["up_block_types"][-1 - level]) == WITH_ATTENTION
