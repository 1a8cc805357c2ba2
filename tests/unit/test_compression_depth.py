"""Depth-pruned transformers: where each weight comes from, what a block learns, and what is refused."""

from typing import Any

import pytest
import torch
from diffusers import (
    FluxTransformer2DModel,
    PixArtTransformer2DModel,
    SanaTransformer2DModel,
    SD3Transformer2DModel,
)

from fewstep.compression.choice import reduction_of
from fewstep.compression.reduction import layer_of, reduced
from fewstep.compression.transformer import evenly_spaced
from fewstep.core.errors import UserError
from fewstep.training.taps import tapped
from tests.compression import cut, filled, origins

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
    ("name", "blocks", "message"),
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
def test_blocks_that_are_not_there_are_refused(name: str, blocks: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        cut(DEEP[name](), blocks=blocks)


def test_even_spacing_keeps_both_ends() -> None:
    assert evenly_spaced(3, 5) == [0, 2, 4]
    assert evenly_spaced(4, 24) == [0, 8, 15, 23]  # 23 / 3 = 7.67, 15.33
    assert evenly_spaced(1, 1) == [0]
    for total in range(2, 30):
        for count in range(2, total + 1):
            indices = evenly_spaced(count, total)
            assert len(set(indices)) == count and (indices[0], indices[-1]) == (0, total - 1)
            assert indices == sorted(indices)
            assert max(abs(i - k * (total - 1) / (count - 1)) for k, i in enumerate(indices)) <= 0.5


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
