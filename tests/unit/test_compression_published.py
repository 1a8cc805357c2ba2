"""SDXL's published smaller U-Nets: where each weight comes from, and networks that have no such size."""

import re
from typing import Any

import pytest
import torch
from diffusers import UNet2DConditionModel

from fewstep.compression.choice import reduction_of
from fewstep.compression.published import PUBLISHED
from fewstep.core.errors import UserError
from fewstep.training.taps import tapped
from tests.compression import cut, filled, origins

SDXL: dict[str, Any] = {
    "block_out_channels": (4, 8, 12),
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    "transformer_layers_per_block": (1, 2, 10),
    "cross_attention_dim": 8,
    "attention_head_dim": 2,
    "norm_num_groups": 2,
    "sample_size": 8,
}


def unet(**changes: Any) -> Any:
    """SDXL's architecture, as narrow as it can be."""
    return UNet2DConditionModel(**SDXL | changes)


# Attention layer -> its transformer layers' origins. Evenly spaced: of 10 layers 2 are 0 and 9, 4 are 0, 3,
# 6 and 9, 5 are 0, 2 (2.25), 5 (4.5), 7 (6.75) and 9, 6 are 0, 2 (1.8), 4 (3.6), 5 (5.4), 7 (7.2) and 9.
ALL, TWO, FOUR, FIVE, SIX = range(10), (0, 9), (0, 3, 6, 9), (0, 2, 5, 7, 9), (0, 2, 4, 5, 7, 9)
KEPT: dict[str, dict[str, tuple[str, Any]]] = {
    "ssd_1b": {
        **{f"down_blocks.1.attentions.{i}": (f"down_blocks.1.attentions.{i}", (0, 1)) for i in range(2)},
        **{f"down_blocks.2.attentions.{i}": (f"down_blocks.2.attentions.{i}", FOUR) for i in range(2)},
        **{
            f"up_blocks.{b}.attentions.{i}": (f"up_blocks.{b}.attentions.{i}", kept)
            for b, stacks in ((0, (FOUR, FOUR, ALL)), (1, ((0, 1), (0,), (0,))))
            for i, kept in enumerate(stacks)
        },
    },
    "vega": {
        **{f"down_blocks.1.attentions.{i}": (f"down_blocks.1.attentions.{i}", (0,)) for i in range(2)},
        **{f"down_blocks.2.attentions.{i}": (f"down_blocks.2.attentions.{i}", TWO) for i in range(2)},
        **{f"up_blocks.0.attentions.{i}": (f"up_blocks.0.attentions.{i}", TWO) for i in range(3)},
        **{f"up_blocks.1.attentions.{i}": (f"up_blocks.1.attentions.{i}", (0,)) for i in range(3)},
    },
}
for name, kept in (("koala_1b", SIX), ("koala_700m", FIVE)):
    KEPT[name] = {
        "down_blocks.1.attentions.0": ("down_blocks.1.attentions.0", (0, 1)),
        "down_blocks.2.attentions.0": ("down_blocks.2.attentions.0", kept),
        "up_blocks.0.attentions.0": ("up_blocks.0.attentions.0", kept),
        "up_blocks.0.attentions.1": ("up_blocks.0.attentions.2", kept),
        "up_blocks.1.attentions.0": ("up_blocks.1.attentions.0", (0, 1)),
        "up_blocks.1.attentions.1": ("up_blocks.1.attentions.2", (0, 1)),
    }
KEPT["koala_1b"]["mid_block.attentions.0"] = "mid_block.attentions.0", SIX
LAYER = re.compile(r"(\w+_blocks?(?:\.\d+)?\.attentions\.\d+)\.transformer_blocks\.(\d+)\.(.+)")


@pytest.mark.parametrize("size", PUBLISHED)
def test_every_weight_is_that_of_its_layer(size: str) -> None:
    large = filled(unet())
    small = cut(large, size)
    before = large.state_dict()
    stacks: dict[str, set[tuple[str, int, int]]] = {}
    for name, origin in origins(large, small).items():
        assert torch.equal(small.state_dict()[name], before[origin])  # shapes, too
        if (layer := LAYER.fullmatch(name)) and (source := LAYER.fullmatch(origin)):
            assert layer[3] == source[3]
            stacks.setdefault(layer[1], set()).add((source[1], int(layer[2]), int(source[2])))
        elif size.startswith("koala") and name.startswith("up_blocks"):
            kind, block, part, number, rest = name.split(".", 4)
            last = part in ("resnets", "attentions") and number == "1"
            assert origin == ".".join([kind, block, part, "2" if last else number, rest])
        else:
            assert origin == name
    expected = {
        name: {(source, j, k) for j, k in enumerate(kept)} for name, (source, kept) in KEPT[size].items()
    }
    assert stacks == expected
    middles = {"ssd_1b": 1, "vega": 1, "koala_1b": 2}
    assert (len(small.mid_block.resnets) if small.mid_block else None) == middles.get(size)


@pytest.mark.parametrize("size", PUBLISHED)
def test_it_draws_and_its_blocks_have_the_shapes_that_they_learn(size: str) -> None:
    large = unet()
    reduction = reduction_of(large, size, None)
    small = cut(large, size)
    inputs = torch.randn(1, 4, 8, 8), 1, torch.randn(1, 3, 8)
    with (
        torch.no_grad(),
        tapped(large, [*reduction.features.values()]) as theirs,
        tapped(small, [*reduction.features]) as ours,
    ):
        assert small(*inputs).sample.shape == large(*inputs).sample.shape
    assert len(reduction.features) == 6 + (small.mid_block is not None)
    for layer, origin in reduction.features.items():
        assert ours[layer].shape == theirs[origin].shape


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"transformer_layers_per_block": (1, 2, 3)}, r"it has fewer transformer layers, \[1, 2, 3\] by res"),
        (
            {"layers_per_block": 1},
            "its blocks have not 2 layers; possible sizes of this network: full, small",
        ),
        (
            {
                "down_block_types": ("CrossAttnDownBlock2D",) * 3,
                "up_block_types": ("CrossAttnUpBlock2D",) * 3,
            },
            "its blocks are not of the types that SDXL's are",
        ),
        ({"mid_block_type": None}, "start from a network that was not made smaller"),
    ],
)
def test_other_networks_have_no_such_size(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        cut(unet(**changes), "ssd_1b")


def test_it_is_not_made_smaller_twice_unnoticed() -> None:
    with pytest.raises(UserError, match="start from a network that was not made smaller"):
        cut(cut(unet(), "ssd_1b"), "vega")
