"""Compilation of networks by blocks."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderTiny, UNet2DConditionModel
from torch import nn
from torch._dynamo.utils import counters

from fewstep.core.compiling import blocks_of, compile_blocks
from tests.miniature import import_miniature


@pytest.fixture(autouse=True)
def nothing_compiled() -> Iterator[None]:
    """Torch's caches of compiled code are empty, before and after."""
    torch._dynamo.reset()
    counters.clear()
    yield
    torch._dynamo.reset()


def graphs() -> int:
    """Graphs that were compiled."""
    return counters["stats"]["unique_graphs"]


def test_each_shape_is_compiled_once_and_no_block_is_left_out() -> None:
    """This U-Net has more shapes of blocks than torch keeps versions of one class's code by default."""
    torch.manual_seed(0)
    net = UNet2DConditionModel(
        block_out_channels=(8, 16, 24, 32),
        layers_per_block=2,
        norm_num_groups=4,
        cross_attention_dim=8,
        attention_head_dim=4,
        sample_size=8,
    ).eval()
    inputs = torch.randn(1, 4, 8, 8), torch.tensor([3.0]), torch.randn(1, 5, 8)
    with torch.no_grad():
        expected = net(*inputs).sample
        compile_blocks(net, "eager")
        assert torch.equal(net(*inputs).sample, expected)
        blocks = blocks_of(net)
        shapes = {(type(block), *(weight.shape for weight in block.parameters())) for block in blocks}
        resolutions = graphs()
        assert {type(block).__name__ for block in blocks} == {"ResnetBlock2D", "BasicTransformerBlock"}
        assert 8 < len(shapes) < len(blocks)
        assert len(shapes) <= resolutions <= len(blocks)
        net(*inputs)
    assert graphs() == resolutions


@pytest.mark.parametrize("family", ["sd", "sdxl", "sd3", "pixart", "flux", "sana", "pixel"])
def test_every_family_has_blocks(family: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    net = import_miniature(family).net
    blocks = blocks_of(net)
    assert blocks and net not in blocks
    inside = {id(weight) for block in blocks for weight in block.parameters()}
    assert len(inside) == sum(len([*block.parameters()]) for block in blocks), "no block is inside another"


def test_a_decoder_is_compiled_where_only_decode_is_called() -> None:
    decoder = AutoencoderTiny(
        latent_channels=4,
        encoder_block_out_channels=(8, 8),
        decoder_block_out_channels=(8, 8),
        num_encoder_blocks=(1, 1),
        num_decoder_blocks=(1, 1),
    ).eval()
    compile_blocks(decoder, "eager")
    with torch.no_grad():
        decoder.decode(torch.randn(1, 4, 4, 4))
    assert graphs() > 0


def test_a_network_without_known_blocks_is_compiled_as_a_whole() -> None:
    net = nn.Sequential(nn.Linear(2, 2), nn.ReLU())
    compile_blocks(net, "eager")
    assert torch.equal(net(torch.ones(1, 2)), net[1](net[0](torch.ones(1, 2))))
    assert graphs() == 1
