"""Published smaller U-Nets of Stable Diffusion XL, which have fewer transformer layers inside their blocks.

SSD-1B and Segmind-Vega (Gupta et al. 2024, "Progressive Knowledge Distillation of Stable Diffusion XL Using
Layer Level Loss"); KOALA (Lee et al. 2024, "KOALA: Empirical Lessons Toward Memory-Efficient and Fast
Diffusion Models"). All three resolutions stay. The geometries are those of the published networks. Of each
stack of transformer layers evenly spaced ones stay, as in compression/transformer.py.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fewstep.compression.reduction import Reduction
from fewstep.compression.transformer import evenly_spaced

REVERSED = "reverse_transformer_layers_per_block"
"""`transformer_layers_per_block` of the up blocks, from the lowest resolution up."""
DOWN_TYPES = ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D")
UP_TYPES = ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D")
LAYERS = 2
"""Layers of SDXL's down blocks; its up blocks have one more."""
PART = re.compile(
    r"(down_blocks\.\d+|up_blocks\.\d+|mid_block)\.\w+\.\d+(\.transformer_blocks\.\d+)?|\w+\.\d+|\w+"
)
"""A layer of a block, one of its transformer layers, or any other part."""


@dataclass(frozen=True)
class Geometry:
    """Transformer layers of a U-Net with SDXL's types of blocks.

    down: of each layer of each down block, from the highest resolution down; 0 without attention. up: the
    same of the up blocks, from the lowest resolution up. middle: of the middle block; 0: it is one residual
    layer; None: it is removed.
    """

    down: tuple[tuple[int, ...], ...]
    middle: int | None
    up: tuple[tuple[int, ...], ...]

    @property
    def layers(self) -> int:
        """Layers of a down block."""
        return len(self.down[0])


PUBLISHED = {
    "ssd_1b": Geometry(((0, 0), (2, 2), (4, 4)), 0, ((4, 4, 10), (2, 1, 1), (0, 0, 0))),
    "vega": Geometry(((0, 0), (1, 1), (2, 2)), 0, ((2, 2, 2), (1, 1, 1), (0, 0, 0))),
    "koala_1b": Geometry(((0,), (2,), (6,)), 6, ((6, 6), (2, 2), (0, 0))),
    "koala_700m": Geometry(((0,), (2,), (5,)), None, ((5, 5), (2, 2), (0, 0))),
}


def fault(config: Mapping[str, Any], size: str) -> str | None:
    """Why a network of this configuration has no such size; None where it has."""
    if (tuple(config["down_block_types"]), tuple(config["up_block_types"])) != (DOWN_TYPES, UP_TYPES):
        return "its blocks are not of the types that SDXL's are"
    if config["mid_block_type"] != "UNetMidBlock2DCrossAttn" or config[REVERSED] is not None:
        return "its blocks are not those of SDXL; start from a network that was not made smaller"
    if config["layers_per_block"] != LAYERS:
        return f"its blocks have not {LAYERS} layers"
    wanted, depths = PUBLISHED[size], config["transformer_layers_per_block"]
    if isinstance(depths, int):
        depths = (depths,) * len(DOWN_TYPES)
    if any(isinstance(depth, Sequence) for depth in depths):
        return "its blocks have layers of different depths"
    most = zip(depths, wanted.down, wanted.up[::-1], strict=True)
    if any(max(*down, *up) > depth for depth, down, up in most) or (wanted.middle or 0) > depths[-1]:
        return f"it has fewer transformer layers, {[*depths]} by resolution"
    return None


def published_reduction(config: Mapping[str, Any], size: str) -> Reduction:
    """What makes a U-Net with SDXL's types of blocks one of this size, for which it has no `fault`."""
    wanted, depths = PUBLISHED[size], config["transformer_layers_per_block"]
    before = (depths,) * len(DOWN_TYPES) if isinstance(depths, int) else tuple(depths)
    changes: dict[str, Any] = {
        "layers_per_block": wanted.layers,
        "transformer_layers_per_block": tuple(entry(*pair) for pair in zip(wanted.down, before, strict=True)),
        REVERSED: tuple(entry(*pair) for pair in zip(wanted.up, before[::-1], strict=True)),
    }
    if not wanted.middle:
        changes["mid_block_type"] = None if wanted.middle is None else "UNetMidBlock2D"

    def depth(block: str, i: int, layer: int, j: str) -> str:
        """Index in the large network of transformer layer j of a layer of block i."""
        kept = {"down_blocks": wanted.down, "up_blocks": wanted.up}[block][i][layer]
        total = before[i] if block == "down_blocks" else before[-1 - i]
        return str(evenly_spaced(kept, total)[int(j)])

    def source(name: str) -> str:
        match name.split("."):
            case ["mid_block", "attentions", "0", "transformer_blocks", j, *rest]:
                j = str(evenly_spaced(wanted.middle or 0, before[-1])[int(j)])
                return ".".join(["mid_block", "attentions", "0", "transformer_blocks", j, *rest])
            case [
                ("down_blocks" | "up_blocks") as block,
                i,
                ("resnets" | "attentions") as kind,
                layer,
                *rest,
            ]:
                if rest[0] == "transformer_blocks":
                    rest[1] = depth(block, int(i), int(layer), rest[1])
                # An up block of one layer keeps its first and its last; see compression/unet.py.
                is_last = block == "up_blocks" and int(layer) == wanted.layers
                return ".".join([block, i, kind, str(LAYERS) if is_last else layer, *rest])
        return name

    blocks = [f"{kind}_blocks.{i}" for kind in ("down", "up") for i in range(len(DOWN_TYPES))]
    if wanted.middle is not None:
        blocks.append("mid_block")
    return Reduction(changes, source, {block: block for block in blocks}, part=PART)


def entry(depths: tuple[int, ...], before: int) -> int | tuple[int, ...]:
    """A level's setting: its depths by layer; the setting as it was, where there is no attention."""
    return depths if any(depths) else before
