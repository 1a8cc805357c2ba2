"""Smaller networks: their exact sizes, where each weight comes from, and what is refused."""

import re
from functools import cache
from typing import Any

import pytest
import torch
from diffusers import (
    FluxTransformer2DModel,
    PixArtTransformer2DModel,
    SanaTransformer2DModel,
    SD3Transformer2DModel,
    UNet2DConditionModel,
)
from torch import nn

from fewstep.compression.choice import reduction_of
from fewstep.compression.reduction import Reduction, layer_of, reduced
from fewstep.compression.transformer import evenly_spaced
from fewstep.core.errors import UserError
from fewstep.training.taps import tapped
from tests.pipelines import MAKERS

SD1: dict[str, Any] = {"cross_attention_dim": 768, "sample_size": 64}
SD2: dict[str, Any] = {
    "cross_attention_dim": 1024,
    "attention_head_dim": (5, 10, 20, 20),
    "use_linear_projection": True,
    "sample_size": 64,
}
SDXL: dict[str, Any] = {
    "block_out_channels": (320, 640, 1280),
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    "transformer_layers_per_block": (1, 2, 10),
    "attention_head_dim": (5, 10, 20),
    "use_linear_projection": True,
    "cross_attention_dim": 2048,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 256,
    "projection_class_embeddings_input_dim": 2816,
    "sample_size": 128,
}
UNETS = {"SD 1": SD1, "SD 2": SD2, "SDXL": SDXL}


@cache
def on_meta(name: str) -> Any:
    """A published U-Net without values."""
    with torch.device("meta"):
        return UNet2DConditionModel(**UNETS[name])


def cut(net: Any, size: str | None = None, blocks: Any = None) -> Any:
    """The smaller network."""
    return reduced(net, reduction_of(net, size, blocks))


def weights(net: nn.Module) -> int:
    return sum(weight.numel() for weight in net.parameters())


# BK-SDM (Kim et al. 2023), its version 2 on SD 2.1, and SDXS-512 as published.
@pytest.mark.parametrize(
    ("name", "size", "expected"),
    [
        ("SD 1", "full", 859_520_964),
        ("SD 1", "base", 579_384_964),
        ("SD 1", "small", 482_346_884),
        ("SD 1", "tiny", 323_384_964),
        ("SD 1", "sd_small", 579_384_964),
        ("SD 1", "sd_tiny", 323_384_964),
        ("SD 2", "base", 583_480_964),
        ("SD 2", "small", 485_787_524),
        ("SD 2", "tiny", 326_825_604),
        ("SD 2", "sdxs", 318_695_364),
    ],
)
def test_sizes_are_the_published_ones(name: str, size: str, expected: int) -> None:
    assert weights(cut(on_meta(name), size)) == expected


def linear(a: int, b: int, bias: bool = True) -> int:
    return a * b + bias * b


def resnet(a: int, b: int, time: int = 1280) -> int:
    """Two normalised 3 x 3 convolutions, the time's projection, and the shortcut where widths differ."""
    shortcut = linear(a, b) if a != b else 0
    return 2 * a + 9 * a * b + b + linear(time, b) + 2 * b + 9 * b * b + b + shortcut


def attention(width: int, layers: int, text: int = 2048) -> int:
    """Normalisation, projections in and out, and `layers` transformer layers with a gated feed-forward."""
    own = 3 * linear(width, width, False) + linear(width, width)
    cross = linear(width, width, False) + 2 * linear(text, width, False) + linear(width, width)
    feed_forward = linear(width, 8 * width) + linear(4 * width, width)
    return 2 * width + 2 * linear(width, width) + layers * (own + cross + feed_forward + 6 * width)


def sdxl(layers: int, middle: bool, levels: int = 3) -> int:
    """Parameters of SDXL's U-Net by its architecture (Podell et al. 2023, table 1)."""
    widths, depth = (320, 640, 1280)[:levels], (0, 2, 10)[:levels]
    total = linear(320, 1280) + linear(1280, 1280)  # time
    total += linear(2816, 1280) + linear(1280, 1280)  # text and sizes
    total += 9 * 4 * 320 + 320 + 2 * 320 + 9 * 320 * 4 + 4  # in and out
    skips, before = [320], 320
    for level, width in enumerate(widths):
        for _ in range(layers):
            total += resnet(before, width) + (attention(width, depth[level]) if depth[level] else 0)
            before = width
            skips.append(width)
        if level < levels - 1:
            total += 9 * width * width + width
            skips.append(width)
    if middle:
        total += 2 * resnet(1280, 1280) + attention(1280, 10)
    for level in reversed(range(levels)):
        width = widths[level]
        for _ in range(layers + 1):
            total += resnet(before + skips.pop(), width)
            total += attention(width, depth[level]) if depth[level] else 0
            before = width
        if level > 0:
            total += 9 * width * width + width
    return total


def test_sizes_of_sdxl_are_those_of_its_layers() -> None:
    assert sdxl(2, True) == weights(on_meta("SDXL")) == 2_567_463_684
    found = {size: weights(cut(on_meta("SDXL"), size)) for size in ("base", "small", "tiny")}
    assert found == {"base": sdxl(1, True), "small": sdxl(1, False), "tiny": sdxl(1, False, levels=2)}


def wide(width: int, times: int) -> int:
    """`times` layers from `width` to `width`, with bias."""
    return times * linear(width, width)


def feed_forward(width: int) -> int:
    return linear(width, 4 * width) + linear(4 * width, width)


# Class, its published settings, the blocks that stay, the number of weights of those removed.
PIXART, SD3, FLUX = 1152, 1536, 3072
PRUNED: dict[str, tuple[Any, dict[str, Any], dict[str, Any], int]] = {
    # Two attentions, a feed-forward, and the table of six modulations (Chen et al. 2023).
    "PixArt": (
        PixArtTransformer2DModel,
        {"sample_size": 64, "use_additional_conditions": False},
        {"transformer_blocks": 14},
        14 * (wide(PIXART, 8) + feed_forward(PIXART) + 6 * PIXART),
    ),
    # Per stream: six modulations, attention and feed-forward (Esser et al. 2024, figure 2).
    "SD3": (
        SD3Transformer2DModel,
        {
            "num_layers": 24,
            "num_attention_heads": 24,
            "caption_projection_dim": SD3,
            "pos_embed_max_size": 192,
        },
        {"transformer_blocks": [0, 5, 10, 23]},
        20 * 2 * (6 * wide(SD3, 1) + wide(SD3, 4) + feed_forward(SD3)),
    ),
    # Of two streams, with four normalisations of queries and keys; of one stream: three modulations, queries,
    # keys, values, a feed-forward of which the output layer takes the attention too, two normalisations.
    "Flux": (
        FluxTransformer2DModel,
        {},
        {"transformer_blocks": 10, "single_transformer_blocks": 20},
        9 * (2 * (6 * wide(FLUX, 1) + wide(FLUX, 4) + feed_forward(FLUX)) + 4 * 128)
        + 18 * (wide(FLUX, 6) + linear(FLUX, 4 * FLUX) + linear(5 * FLUX, FLUX) + 2 * 128),
    ),
}


@pytest.mark.parametrize("name", PRUNED)
def test_a_pruned_transformer_lacks_the_blocks_that_were_removed(name: str) -> None:
    kind, settings, blocks, removed = PRUNED[name]
    with torch.device("meta"):
        net = kind(**settings)
    assert weights(net) - weights(cut(net, blocks=blocks)) == removed


def filled(net: nn.Module) -> nn.Module:
    """Every weight another constant: 1, 2, 3 ..."""
    for i, weight in enumerate(net.state_dict().values()):
        weight.fill_(i + 1)
    return net


def origins(large: nn.Module, small: nn.Module) -> dict[str, str]:
    """Weight of the small network -> the weight of the large one that has its value."""
    names = [*large.state_dict()]
    return {name: names[int(weight.flatten()[-1]) - 1] for name, weight in small.state_dict().items()}


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
    found = origins(large, small)
    layers: dict[str, str] = {}
    for name, origin in found.items():
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
    found = cut(unet(block_out_channels=(4, 8, 12, 16)), "tiny")
    found(torch.randn(1, 4, 8, 8), 1, torch.randn(1, 3, 8)).sample.square().sum().backward()
    assert (found.get_submodule(layer).conv1.weight.grad[:, :12] != 0).any()


def test_nothing_is_shared_with_the_start_model() -> None:
    large = unet()
    before = {name: weight.clone() for name, weight in large.state_dict().items()}
    small = cut(large, "full")
    for weight in small.state_dict().values():
        weight.fill_(7)
    assert all(torch.equal(weight, before[name]) for name, weight in large.state_dict().items())


@pytest.mark.parametrize(
    ("source", "said"),
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
def test_a_careless_copy_is_an_error_that_names_the_weight(source: tuple[str, str], said: str) -> None:
    rule = Reduction({}, lambda name: name.replace(*source), {})
    with pytest.raises(UserError, match=said):
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
    ("changes", "size", "said"),
    [
        ({"layers_per_block": 1}, "base", "every block has one layer already; .*: full, small, tiny, sdxs"),
        (
            {"mid_block_type": None},
            "small",
            "there is no middle block to be removed; .*: full, base, tiny, sdxs",
        ),
    ],
)
def test_a_size_without_a_meaning_is_refused(changes: dict[str, Any], size: str, said: str) -> None:
    with pytest.raises(UserError, match=f"size = '{size}': {said}"):
        cut(unet(**changes), size)


def test_a_size_without_text_is_refused() -> None:
    net = MAKERS["sd"]().unet
    with pytest.raises(UserError, match=r"no block with attention to the text.*network: full, small$"):
        cut(net, "tiny")
    with pytest.raises(UserError, match="no attention at the highest resolution"):
        cut(on_meta("SDXL"), "sdxs")


def test_settings_per_level_and_per_layer_follow_their_levels() -> None:
    large = unet(
        attention_head_dim=(1, 2, 3, 4),
        transformer_layers_per_block=((1, 2), (2, 1), (3, 1), (1, 1)),
        reverse_transformer_layers_per_block=((1, 1, 1), (3, 2, 2), (1, 2, 2), (2, 1, 1)),
    )
    small = cut(large, "tiny")
    assert small.config.attention_head_dim == (1, 2, 3)
    found = [[len(each.transformer_blocks) for each in block.attentions] for block in small.down_blocks]
    assert found == [[1], [2], [3]]
    found = [[len(each.transformer_blocks) for each in block.attentions] for block in small.up_blocks]
    assert found == [[3, 2], [1, 2], [2, 1]]


DEEP: dict[str, Any] = {
    "PixArt": lambda: PixArtTransformer2DModel(
        sample_size=4, num_layers=5, num_attention_heads=1, attention_head_dim=8, cross_attention_dim=8,
        caption_channels=6, out_channels=4, use_additional_conditions=False,
    ),
    "SD3": lambda: SD3Transformer2DModel(
        sample_size=4, num_layers=5, num_attention_heads=1, attention_head_dim=8, joint_attention_dim=6,
        caption_projection_dim=8, pooled_projection_dim=6, in_channels=4, out_channels=4,
        pos_embed_max_size=8, dual_attention_layers=(0, 1, 3), qk_norm="rms_norm",
    ),
    "Flux": lambda: FluxTransformer2DModel(
        in_channels=4, num_layers=5, num_single_layers=4, num_attention_heads=1, attention_head_dim=16,
        joint_attention_dim=6, pooled_projection_dim=6, axes_dims_rope=(4, 6, 6),
    ),
    "Sana": lambda: SanaTransformer2DModel(
        sample_size=4, patch_size=1, in_channels=4, out_channels=4, num_layers=5, num_attention_heads=1,
        attention_head_dim=8, num_cross_attention_heads=1, cross_attention_head_dim=8, cross_attention_dim=8,
        caption_channels=6,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", DEEP)
def test_every_weight_is_that_of_its_block(name: str) -> None:
    large = filled(DEEP[name]())
    blocks: dict[str, Any] = {"transformer_blocks": [1, 3, 4]}
    kept = {f"transformer_blocks.{j}": f"transformer_blocks.{i}" for j, i in enumerate([1, 3, 4])}
    if name == "Flux":
        blocks["single_transformer_blocks"] = 3  # 0, 2 (half of 3, rounded up) and 3
        kept |= {
            f"single_transformer_blocks.{j}": f"single_transformer_blocks.{i}"
            for j, i in enumerate([0, 2, 3])
        }
    small = cut(large, blocks=blocks)
    for weight, origin in origins(large, small).items():
        mine = layer_of(weight)
        assert origin == kept.get(mine, mine) + weight.removeprefix(mine)
        assert torch.equal(small.state_dict()[weight], large.state_dict()[origin])
    assert {layer_of(weight) for weight in small.state_dict() if "blocks" in weight} == kept.keys()
    if name == "SD3":
        assert small.config.dual_attention_layers == (0, 1)
        assert [block.context_pre_only for block in small.transformer_blocks] == [False, False, True]


@pytest.mark.parametrize(
    ("name", "blocks", "said"),
    [
        ("SD3", {"transformer_blocks": [0, 1]}, "the last block, 4, differs from the others and has to stay"),
        ("PixArt", {"transformer_blocks": [3, 1]}, r"\[3, 1\]: expected ascending indices from 0 to 4"),
        ("PixArt", {"transformer_blocks": [1, 5]}, "expected ascending indices from 0 to 4"),
        ("PixArt", {"transformer_blocks": []}, "expected ascending indices from 0 to 4"),
        (
            "PixArt",
            {"transformer_blocks": 1},
            "= 1: of 5 blocks the first and the last always stay; take 2 to 5",
        ),
        ("PixArt", {"transformer_blocks": 6}, "take 2 to 5"),
        ("Sana", {"single_transformer_blocks": 1}, "no such stack; this network has transformer_blocks"),
    ],
)
def test_blocks_that_are_not_there_are_refused(name: str, blocks: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=said):
        cut(DEEP[name](), blocks=blocks)


def test_a_network_without_a_rule_is_refused() -> None:
    for net, size, blocks, said in (
        (DEEP["Sana"](), "tiny", None, "size = 'tiny': a SanaTransformer2DModel is made smaller by `blocks`"),
        (unet(), None, {"transformer_blocks": 2}, "blocks: a UNet2DConditionModel is made smaller by `size`"),
        (MAKERS["pixel"]().unet, "full", None, "size: no rule to make a UNet2DModel smaller"),
        (nn.Linear(1, 1), None, {}, "blocks: no rule to make a Linear smaller"),
    ):
        with pytest.raises(UserError, match=said):
            cut(net, size, blocks)


def test_even_spacing_keeps_both_ends() -> None:
    assert evenly_spaced(3, 5) == [0, 2, 4]
    assert evenly_spaced(4, 24) == [0, 8, 15, 23]  # 23 / 3 = 7.67, 15.33
    assert evenly_spaced(1, 1) == [0]
    for total in range(2, 30):
        for count in range(2, total + 1):
            found = evenly_spaced(count, total)
            assert len(set(found)) == count and (found[0], found[-1]) == (0, total - 1)
            assert found == sorted(found)
            assert max(abs(i - k * (total - 1) / (count - 1)) for k, i in enumerate(found)) <= 0.5


def called(name: str, net: Any) -> None:
    """One evaluation."""
    x, time, text = torch.randn(1, 4, 4, 4), torch.ones(1), torch.randn(1, 3, 6)
    if name == "Flux":
        ids = torch.zeros(4, 3), torch.zeros(3, 3)
        net(x.flatten(2).mT[:, :4], text, torch.randn(1, 6), time, *ids, guidance=None)
    elif name == "SD3":
        net(x, text, torch.randn(1, 6), time)
    else:
        net(x, encoder_hidden_states=text, timestep=time)


def test_a_block_learns_what_the_next_one_takes() -> None:
    rule = reduction_of(DEEP["PixArt"](), None, {"transformer_blocks": [1, 3]})
    # Before block 3 comes block 2, before the end of the network block 4.
    assert rule.features == {
        "transformer_blocks.0": "transformer_blocks.2",
        "transformer_blocks.1": "transformer_blocks.4",
    }
    whole = reduction_of(DEEP["Flux"](), "full", None).features
    assert len(whole) == 9 and all(block == layer for block, layer in whole.items())


@pytest.mark.parametrize("name", DEEP)
def test_without_the_removed_blocks_all_outputs_are_equal(name: str) -> None:
    """Where the removed blocks change nothing, every pair of outputs is equal."""
    torch.manual_seed(0)
    large = DEEP[name]().eval()
    kept = {"transformer_blocks": [0, 3, 4]}
    if name == "Flux":
        kept["single_transformer_blocks"] = [0, 3]
    for stack, stay in kept.items():
        for i, block in enumerate(large.get_submodule(stack)):
            if i not in stay:
                block.register_forward_hook(
                    lambda _, inputs, named, output: unchanged(inputs, named, output), with_kwargs=True
                )
    rule = reduction_of(large, None, kept)
    small = reduced(large, rule)
    torch.manual_seed(1)
    with torch.no_grad(), tapped(large, [*rule.features.values()]) as targets:
        called(name, large)
    torch.manual_seed(1)
    with torch.no_grad(), tapped(small, [*rule.features]) as features:
        called(name, small)
    assert len(features) == len(rule.features) == sum(map(len, kept.values()))
    for block, layer in rule.features.items():
        torch.testing.assert_close(features[block], targets[layer])


def unchanged(inputs: tuple[Any, ...], named: dict[str, Any], output: Any) -> Any:
    """A block's inputs as its output."""
    hidden = inputs[0] if inputs else named["hidden_states"]
    if isinstance(output, torch.Tensor):
        return hidden
    text = named.get("encoder_hidden_states", inputs[1] if len(inputs) > 1 else None)
    return text, hidden


@pytest.mark.parametrize("size", ["full", *MAPS])
def test_the_features_of_a_unet_have_equal_shapes(size: str) -> None:
    large = unet(block_out_channels=(4, 8, 12, 16))
    rule = reduction_of(large, size, None)
    small: Any = reduced(large, rule)
    x: tuple[Any, ...] = (torch.randn(1, 4, 8, 8), 1, torch.randn(1, 3, 8))
    with torch.no_grad(), tapped(large, [*rule.features.values()]) as targets:
        large(*x)
    with torch.no_grad(), tapped(small, [*rule.features]) as features:
        small(*x)
    assert {block: found.shape for block, found in features.items()} == {
        block: targets[layer].shape for block, layer in rule.features.items()
    }
    blocks = len(small.down_blocks) + len(small.up_blocks) + (small.mid_block is not None)
    assert len(features) == blocks
    if size in ("tiny", "sdxs"):  # the start's down block ends after its downsampler, the student's has none
        assert rule.features["down_blocks.2"] == "down_blocks.2.attentions.1"
