"""Feature taps on the networks of every family: whole blocks in order, with their gradients."""

from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from fewstep.backbones.registry import family
from fewstep.core.hardware import attention
from fewstep.diffusion.denoiser import Prediction
from fewstep.diffusion.schedules import RectifiedFlow
from fewstep.training.taps import blocks, tapped
from tests import pipelines

FAMILIES = {
    "sd": ["down_blocks.0", "down_blocks.1", "mid_block", "up_blocks.0", "up_blocks.1"],
    "sd3": ["transformer_blocks.0", "transformer_blocks.1"],
    "flux": ["transformer_blocks.0", "single_transformer_blocks.0"],
}


def network(name: str) -> tuple[Any, Any, Tensor]:
    """A denoiser, how its family calls it, and noise that it takes."""
    kind = family(pipelines.backbone_of(name))
    net = pipelines.MAKERS[name]().components[kind.net_part].requires_grad_(False)
    backbone = kind.of(None)({}, RectifiedFlow(), Prediction.FLOW)
    conditions = backbone.example_conditions(net, 2, None)
    if conditions is None:  # Flux: its configuration lacks the length of prompts
        widths = {"text": (3, net.config.joint_attention_dim), "pooled": (net.config.pooled_projection_dim,)}
        conditions = {name: torch.zeros(2, *width) for name, width in widths.items()}
    channels = net.config.in_channels // (4 if name == "flux" else 1)  # Flux packs 2 x 2 latents
    x = torch.randn(2, channels, pipelines.SIDE, pipelines.SIDE, generator=torch.Generator().manual_seed(0))
    return net, lambda x: backbone.network(net)(x, torch.full((2,), 0.5), conditions), x


@pytest.mark.parametrize("name", FAMILIES)
def test_blocks_are_named_in_the_order_of_the_forward_pass(name: str) -> None:
    net, call, x = network(name)
    names, order = blocks(net), []
    for layer in names:
        net.get_submodule(layer).register_forward_hook(lambda *_, layer=layer: order.append(layer))
    call(x)
    assert names == order
    assert set(FAMILIES[name]) <= set(names)


@pytest.mark.parametrize("name", FAMILIES)
def test_a_loss_on_features_has_the_same_gradient_with_checkpointing(name: str) -> None:
    net, call, x = network(name)
    middle = blocks(net)[len(blocks(net)) // 2]

    def gradient() -> Tensor:
        leaf = x.clone().requires_grad_()
        with tapped(net, [middle]) as features, attention():
            call(leaf)
        assert not net.get_submodule(middle)._forward_hooks
        with attention():
            features[middle].square().sum().backward()  # type: ignore[no-untyped-call]
        assert leaf.grad is not None
        return leaf.grad

    expected = gradient()
    net.train()
    net.enable_gradient_checkpointing(partial(checkpoint, use_reentrant=False))
    torch.testing.assert_close(gradient(), expected)
    assert expected.abs().max() > 0


def test_a_layer_that_is_not_there_is_an_error() -> None:
    with pytest.raises(AttributeError, match="no attribute `third`"), tapped(nn.Sequential(), ["third"]):
        pass
