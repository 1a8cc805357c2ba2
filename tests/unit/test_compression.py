"""Block-removed U-Nets: where each weight comes from, what a block learns, and what is refused."""

import re
from typing import Any

import pytest
import torch
from diffusers import (
    UNet2DConditionModel,
)
from torch import nn

from fewstep.compression.choice import reduction_of
from fewstep.compression.reduction import Reduction, layer_of, reduced
from fewstep.core.errors import UserError
from fewstep.training.taps import tapped
from tests.compression import cut, filled, origins
from tests.pipelines import MAKERS


def unet(**changes: Any) -> Any:
    """SD's architecture, as narrow as it can be."""
    settings: dict[str, Any] = {
        "block_out_channels": (4, 8, 12, 12),
        "cross_attention_dim": 8,
        "attention_head_dim": 2,
        "norm_num_groups": 2,
        "sample_size": 8,
    }
    return UNet2DConditionModel(**settings | changes)


DOWN_TYPES = ("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D")
UP_TYPES = ("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D")

# Layer of the student -> layer of its start, as in BK-SDM's figure 4.
SAME = {
    layer: layer
    for i in range(3)
    for layer in (f"down_blocks.{i}.resnets.0", f"down_blocks.{i}.attentions.0")
}
DOWN = SAME | {f"down_blocks.{i}.downsamplers.0": f"down_blocks.{i}.downsamplers.0" for i in range(3)}
BASE = DOWN | {"down_blocks.3.resnets.0": "down_blocks.3.resnets.0"} | {
    f"up_blocks.{i}.{kind}.{j}": f"up_blocks.{i}.{kind}.{k}"
    for i in range(4)
    for kind in ("resnets", "attentions", "upsamplers")
    for j, k in ((0, 0), (1, 2))
    if (i > 0 or kind != "attentions") and (kind != "upsamplers" or (j == 0 and i < 3))
}  # fmt: skip
TINY = {name: layer for name, layer in DOWN.items() if name != "down_blocks.2.downsamplers.0"} | {
    f"up_blocks.{i - 1}.{rest}": layer
    for name, layer in BASE.items()
    if name.startswith("up_blocks") and not name.startswith("up_blocks.0")
    for i, rest in [(int(name.split(".")[1]), name.split(".", 2)[2])]
}
OUTER = ("down_blocks.0.attentions.0", "up_blocks.2.attentions.0", "up_blocks.2.attentions.1")
MAPS = {
    "base": BASE,
    "small": BASE,
    "tiny": TINY,
    "sdxs": {name: layer for name, layer in TINY.items() if name not in OUTER},
}


@pytest.mark.parametrize("size", MAPS)
def test_every_weight_is_that_of_its_layer(size: str) -> None:
    large = filled(unet())
    small = cut(large, size)
    origin_of = origins(large, small)
    layers: dict[str, str] = {}
    for name, origin in origin_of.items():
        mine, theirs = layer_of(name), layer_of(origin)
        assert name.removeprefix(mine) == origin.removeprefix(theirs)
        layers.setdefault(mine, theirs)
        assert layers[mine] == theirs
        weight = small.state_dict()[name]
        assert torch.equal(weight, large.state_dict()[origin])  # shapes, too
    blocks = {name: layer for name, layer in layers.items() if re.match("(up|down)_", name)}
    assert blocks == MAPS[size]
    assert all(name == layer for name, layer in layers.items() if name not in blocks)
    assert ("mid_block" in layers) == (size == "base")


def test_a_narrower_stream_starts_from_the_skip_connection_alone() -> None:
    large = filled(unet(block_out_channels=(4, 8, 12, 16)))
    small = cut(large, "tiny").state_dict()
    layer, origin = "up_blocks.0.resnets.0", "up_blocks.1.resnets.0"
    for name in ("norm1.weight", "norm1.bias", "conv1.weight", "conv_shortcut.weight"):
        weight, whole = small[f"{layer}.{name}"], large.state_dict()[f"{origin}.{name}"]
        new, copied = weight.split(12, dim=min(1, weight.ndim - 1))
        assert torch.equal(copied, whole[-12:] if whole.ndim == 1 else whole[:, -12:])
        assert (new == float(name == "norm1.weight")).all()
    assert torch.equal(small[f"{layer}.conv1.bias"], large.state_dict()[f"{origin}.conv1.bias"])
    # So it has a gradient.
    net = cut(unet(block_out_channels=(4, 8, 12, 16)), "tiny")
    net(torch.randn(1, 4, 8, 8), 1, torch.randn(1, 3, 8)).sample.square().sum().backward()
    assert (net.get_submodule(layer).conv1.weight.grad[:, :12] != 0).any()


def test_nothing_is_shared_with_the_start_model() -> None:
    large = unet()
    before = {name: weight.clone() for name, weight in large.state_dict().items()}
    small = cut(large, "full")
    for weight in small.state_dict().values():
        weight.fill_(7)
    assert all(torch.equal(weight, before[name]) for name, weight in large.state_dict().items())


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (
            ("conv1", "conv_shortcut"),
            r"conv1.weight: \[8, 4, 1, 1\] in .*conv_shortcut.weight, \[8, 4, 3, 3\] here",
        ),
        (
            ("conv_shortcut", "conv1"),
            r"conv_shortcut.weight: \[8, 4, 3, 3\] in .*conv1.weight, \[8, 4, 1, 1\] her",
        ),
        (("conv_in", "conv_on"), "conv_in.weight: conv_on.weight is not a weight of the start model"),
        (
            ("norm1", "norm2"),
            "resnets.0.norm1.weight: a weight of the start model without a place in a layer",
        ),
    ],
)
def test_a_careless_copy_is_an_error_that_names_the_weight(source: tuple[str, str], message: str) -> None:
    rule = Reduction({}, lambda name: name.replace(*source), {})
    with pytest.raises(UserError, match=message):
        reduced(unet(), rule)


def test_a_lost_setting_is_an_error_that_names_its_weight() -> None:
    """Otherwise a start model's guidance input, or a transformer layer, would be lost unnoticed."""
    for changes, name in (
        ({"time_cond_proj_dim": None}, "time_embedding.cond_proj.weight"),
        ({"transformer_layers_per_block": 1}, "down_blocks.0.attentions.0.transformer_blocks.1.norm1.weight"),
    ):
        net = unet(time_cond_proj_dim=256, transformer_layers_per_block=2)
        with pytest.raises(
            UserError, match=re.escape(f"{name}: a weight of the start model without a place")
        ):
            reduced(net, Reduction(changes, lambda name: name, {}))


@pytest.mark.parametrize(
    ("changes", "size", "message"),
    [
        ({"layers_per_block": 1}, "base", "every block has one layer already; .*: full, small, tiny, sdxs"),
        (
            {"mid_block_type": None},
            "small",
            "there is no middle block to be removed; .*: full, base, tiny, sdxs",
        ),
    ],
)
def test_a_size_without_a_meaning_is_refused(changes: dict[str, Any], size: str, message: str) -> None:
    with pytest.raises(UserError, match=f"unet = '{size}': {message}"):
        cut(unet(**changes), size)


def test_a_size_without_text_is_refused() -> None:
    net = MAKERS["sd"]().unet
    with pytest.raises(UserError, match=r"no block with attention to the text.*network: full, small$"):
        cut(net, "tiny")
    with pytest.raises(UserError, match="no attention at the highest resolution"):
        cut(unet(down_block_types=("DownBlock2D", *DOWN_TYPES), up_block_types=UP_TYPES), "sdxs")


@pytest.mark.parametrize("size", ["full", "base", "small"])
def test_a_level_without_attention_keeps_its_other_layers(size: str) -> None:
    large = filled(unet())
    whole, small = cut(large, size), cut(large, size, attention=[True, False, True, True])
    removed = ("down_blocks.1.attentions.", "up_blocks.2.attentions.")
    kept = [name for name in origins(large, whole) if not name.startswith(removed)]
    assert origins(large, small) == {name: origins(large, whole)[name] for name in kept}
    down, up = small.config.down_block_types, small.config.up_block_types
    assert ["CrossAttn" in kind for kind in down] == ["CrossAttn" in kind for kind in reversed(up)]
    assert ["CrossAttn" in kind for kind in down] == [True, False, True, False]
    assert (small.mid_block is None) == (size == "small")


def test_sdxs_is_tiny_without_attention_at_the_highest_resolution() -> None:
    large = filled(unet())
    sdxs, tiny = cut(large, "sdxs"), cut(large, "tiny", attention=[False, True, True])
    assert origins(large, sdxs) == origins(large, tiny)
    assert {**sdxs.config} == {**tiny.config}


@pytest.mark.parametrize(
    ("size", "attention", "message"),
    [
        ("small", [True, False], "expected an entry for each of the 4 resolutions that stay"),
        ("tiny", [True, True, True, False], "expected an entry for each of the 3 resolutions that stay"),
        ("small", [True, True, True, False], "there is no attention at resolution 4 that could be removed"),
        ("small", [False, False, False, True], "no block with attention to the text would be left"),
        ("sdxs", [False, True, True], "unet: sdxs says itself where its attention is"),
        ("vega", [False, True, True], "unet = 'vega'"),
    ],
)
def test_attention_that_cannot_be_removed_is_refused(size: str, attention: list[bool], message: str) -> None:
    with pytest.raises(UserError, match=re.escape(message)):
        cut(unet(), size, attention=attention)


def test_attention_of_a_transformer_is_refused() -> None:
    with pytest.raises(UserError, match="attention: removed from U-Nets alone, this is a Sana"):
        cut(MAKERS["sana"]().transformer, "full", attention=[False])


def test_the_middle_blocks_attention_is_enough() -> None:
    assert cut(unet(), "base", attention=[False, False, False, True]).mid_block.has_cross_attention


def test_settings_per_level_and_per_layer_follow_their_levels() -> None:
    large = unet(
        attention_head_dim=(1, 2, 3, 4),
        transformer_layers_per_block=((1, 2), (2, 1), (3, 1), (1, 1)),
        reverse_transformer_layers_per_block=((1, 1, 1), (3, 2, 2), (1, 2, 2), (2, 1, 1)),
    )
    small = cut(large, "tiny")
    assert small.config.attention_head_dim == (1, 2, 3)
    depths = [[len(each.transformer_blocks) for each in block.attentions] for block in small.down_blocks]
    assert depths == [[1], [2], [3]]
    depths = [[len(each.transformer_blocks) for each in block.attentions] for block in small.up_blocks]
    assert depths == [[3, 2], [1, 2], [2, 1]]


def test_a_network_without_a_rule_is_refused() -> None:
    for net, size, blocks, message in (
        (
            MAKERS["sana"]().transformer,
            "tiny",
            None,
            "unet = 'tiny': a SanaTransformer2DModel is made smaller by `blocks`",
        ),
        (unet(), None, {"transformer_blocks": 2}, "blocks: a UNet2DConditionModel is made smaller by `unet`"),
        (MAKERS["pixel"]().unet, "full", None, "unet: no rule to make a UNet2DModel smaller"),
        (nn.Linear(1, 1), None, {}, "blocks: no rule to make a Linear smaller"),
    ):
        with pytest.raises(UserError, match=message):
            cut(net, size, blocks)


FEATURES: list[tuple[str, tuple[bool, ...]]] = [(size, ()) for size in ("full", *MAPS)]


@pytest.mark.parametrize(("size", "attention"), [("small", (False, True, True, True)), *FEATURES])
def test_the_features_of_a_unet_have_equal_shapes(size: str, attention: tuple[bool, ...]) -> None:
    large = unet(block_out_channels=(4, 8, 12, 16))
    rule = reduction_of(large, size, None, attention)
    small: Any = reduced(large, rule)
    x: tuple[Any, ...] = (torch.randn(1, 4, 8, 8), 1, torch.randn(1, 3, 8))
    with torch.no_grad(), tapped(large, [*rule.features.values()]) as targets:
        large(*x)
    with torch.no_grad(), tapped(small, [*rule.features]) as features:
        small(*x)
    assert {block: output.shape for block, output in features.items()} == {
        block: targets[layer].shape for block, layer in rule.features.items()
    }
    blocks = len(small.down_blocks) + len(small.up_blocks) + (small.mid_block is not None)
    assert len(features) == blocks
    if size in ("tiny", "sdxs"):  # the start's down block ends after its downsampler, the student's has none
        assert rule.features["down_blocks.2"] == "down_blocks.2.attentions.1"
