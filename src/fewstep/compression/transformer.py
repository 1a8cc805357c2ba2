"""Depth-pruned diffusion transformers: some of the blocks of each stack stay."""

from collections.abc import Mapping, Sequence
from typing import Any

from fewstep.compression.reduction import Reduction
from fewstep.core.errors import UserError

ONE_STACK = {"transformer_blocks": "num_layers"}
STACKS: Mapping[str, Mapping[str, str]] = {
    "PixArtTransformer2DModel": ONE_STACK,
    "SanaTransformer2DModel": ONE_STACK,
    "SD3Transformer2DModel": ONE_STACK,
    "FluxTransformer2DModel": {**ONE_STACK, "single_transformer_blocks": "num_single_layers"},
}
"""Class in diffusers -> the stacks of its blocks -> the setting that has their number."""
LAST_DIFFERS = ("SD3Transformer2DModel",)
"""Classes whose last block is of another kind than the others (SD3: its text stream ends there)."""
DUAL = "dual_attention_layers"
"""Setting of SD3.5: the blocks with a second attention."""


def transformer_reduction(
    kind: str, config: Mapping[str, Any], blocks: Mapping[str, int | Sequence[int]]
) -> Reduction:
    """What leaves these blocks of a transformer of class `kind` and this configuration.

    blocks: stack -> how many of its blocks stay, evenly spaced, or which ones; a stack without an entry keeps
    all. A block that stays learns the output of the last block before the next one that stays, as the layer
    that is left in a U-Net's block learns the block's output. So its successor finds the input that it had.

    Raises UserError on a stack that the network does not have, and on an impossible choice.
    """
    stacks = STACKS[kind]
    if unknown := blocks.keys() - stacks.keys():
        raise UserError(f"blocks.{min(unknown)}: no such stack; this network has {', '.join(stacks)}")
    changes: dict[str, Any] = {}
    kept: dict[str, list[int]] = {}
    features: dict[str, str] = {}
    for stack, setting in stacks.items():
        total = config[setting]
        kept[stack] = chosen(stack, blocks.get(stack, total), total)
        if kind in LAST_DIFFERS and kept[stack][-1] != total - 1:
            raise UserError(
                f"blocks.{stack}: the last block, {total - 1}, differs from the others and has to stay"
            )
        changes[setting] = len(kept[stack])
        ends = [*kept[stack][1:], total]
        features |= {f"{stack}.{j}": f"{stack}.{end - 1}" for j, end in enumerate(ends)}
    if config.get(DUAL):
        places = enumerate(kept["transformer_blocks"])
        changes[DUAL] = tuple(j for j, i in places if i in config[DUAL])

    def source(name: str) -> str:
        stack, _, rest = name.partition(".")
        if stack not in kept:
            return name
        j, _, rest = rest.partition(".")
        return f"{stack}.{kept[stack][int(j)]}.{rest}"

    return Reduction(changes, source, features)


def chosen(stack: str, which: int | Sequence[int], total: int) -> list[int]:
    """Indices of the blocks that stay, ascending. Raises UserError on an impossible choice."""
    if isinstance(which, int):
        if not min(2, total) <= which <= total:
            raise UserError(
                f"blocks.{stack} = {which}: of {total} blocks the first and the last always stay; "
                f"take {min(2, total)} to {total}, or list those that stay"
            )
        return evenly_spaced(which, total)
    if list(which) != sorted(set(which) & set(range(total))) or not which:
        raise UserError(f"blocks.{stack} = {[*which]}: expected ascending indices from 0 to {total - 1}")
    return list(which)


def evenly_spaced(count: int, total: int) -> list[int]:
    """`round(k (total - 1) / (count - 1))` for k = 0 to count - 1, halves rounded up.

    The first and the last index are always among them.
    """
    gaps = max(count - 1, 1)
    return [(2 * k * (total - 1) + gaps) // (2 * gaps) for k in range(count)]
