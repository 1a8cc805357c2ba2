"""Numbers that a denoising network of diffusers takes beside its time: guidance, and the end time of a step.

Each is embedded and projected onto the time embedding, as latent consistency models take guidance (Luo et al.
2023, section 4.2). Every family embeds its time with diffusers' `TimestepEmbedding`, which has a place for
the projection (`cond_proj`). `UNet2DConditionModel` stores the projection, and its stock pipelines pass
guidance to it. For other classes it is stored beside the network, in a file of its own, and an export has a
constant in its place (`fixed`).
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from fewstep.backbones.low_rank import twin
from fewstep.diffusion.denoiser import GUIDANCE, Conditions, Network

INPUT_WIDTH = 256
"""Width of an embedded input, as in latent consistency models."""
WIDTH_KEY = "time_cond_proj_dim"
"""Entry of a network's configuration: total width of its inputs, or None; only of classes that store them."""
TIME_EMBEDDINGS = ("time_embedding", "timestep_embedder")
"""Names of the embedding of the time in diffusers' classes."""
FILE, PROJECTION = "inputs.safetensors", "projection"
"""File beside a stored network whose class does not store inputs, and the projection's name in it."""


def takes_inputs(net: nn.Module) -> bool:
    """Whether the network's class takes inputs by itself, so that stock pipelines can pass guidance."""
    config: Any = net.config
    return WIDTH_KEY in config


def time_embedding(net: nn.Module) -> Any:
    """The `TimestepEmbedding` of the network's time."""
    (found,) = (module for name, module in net.named_modules() if name.rpartition(".")[2] in TIME_EMBEDDINGS)
    return found


def projection_of(net: nn.Module) -> Tensor:
    """The projection of all inputs `[E, W]`, detached; W = 0 for a network without inputs."""
    embedding = time_embedding(net)
    if embedding.cond_proj is None:
        first = embedding.linear_1.weight.detach()
        return first.new_zeros(first.shape[1], 0)
    weight: Tensor = embedding.cond_proj.weight.detach()
    return weight


def set_projection(net: nn.Module, weight: Tensor) -> None:
    """Replace the projection of a network's inputs by `weight [E, W]`, in place; W = 0 removes it."""
    size, width = weight.shape
    layer = nn.Linear(width, size, bias=False, device="meta") if width else None
    if layer is not None:
        layer.weight = nn.Parameter(weight)
    time_embedding(net).cond_proj = layer
    if takes_inputs(net):
        net.register_to_config(**{WIDTH_KEY: width or None})  # type: ignore[operator]


def widened(net: nn.Module) -> nn.Module:
    """The network with one more input, on which its output does not depend yet; other weights are shared."""
    wider, before = twin(net), projection_of(net)
    set_projection(wider, torch.cat([before, before.new_zeros(len(before), INPUT_WIDTH)], 1))
    return wider


@torch.no_grad()
def fixed(net: nn.Module, inputs: Sequence[str], name: str, value: Tensor) -> nn.Module:
    """The network without the input `name`, which always has the value `[1]`; other weights are shared.

    inputs: all inputs of the network in their order. The projected embedding is a constant then, and becomes
    part of the bias of the time embedding's first layer. The output stays the same.
    """
    narrower, projection = twin(net), projection_of(net)
    start = INPUT_WIDTH * list(inputs).index(name)
    own = slice(start, start + INPUT_WIDTH)
    constant = projection[:, own] @ embedded_number(name, value)[0].to(projection)
    first = time_embedding(narrower).linear_1
    first.bias = nn.Parameter(first.bias + first.weight @ constant)
    set_projection(narrower, torch.cat([projection[:, : own.start], projection[:, own.stop :]], 1))
    return narrower


def save_with_inputs(net: nn.Module, folder: Path) -> None:
    """Write a network of diffusers into `folder`, with its inputs."""
    plain: Any = net
    projection = projection_of(net)
    if projection.shape[1] and not takes_inputs(net):
        plain = twin(net)
        set_projection(plain, projection[:, :0])
    plain.save_pretrained(folder)
    if plain is not net:
        save_file({PROJECTION: projection.contiguous().cpu()}, folder / FILE)


def add_saved_inputs(net: nn.Module, folder: Path) -> None:
    """Add the inputs that `save_with_inputs` wrote beside the network, in place."""
    if (folder / FILE).is_file():
        set_projection(net, load_file(folder / FILE)[PROJECTION].to(projection_of(net)))


def with_inputs(network: Network, net: nn.Module, inputs: Sequence[str]) -> Network:
    """`network`, which calls `net`, whose time embedding then receives the conditions named by `inputs`."""
    embedding = time_embedding(net)

    def run(x: Tensor, time: Tensor, conditions: Conditions) -> Tensor:
        value = torch.cat([embedded_number(name, conditions[name]) for name in inputs], 1)
        hook = embedding.register_forward_pre_hook(lambda _, arguments: (arguments[0], value))
        try:
            return network(x, time, conditions)
        finally:
            hook.remove()

    return run


def embedded_number(name: str, value: Tensor) -> Tensor:
    """Sinusoidal embedding `[B, INPUT_WIDTH]` of a condition `[B]`.

    Of guidance minus 1, as in stock pipelines; of a time, as in the networks.
    """
    # Imported only here: every process that reads the chain's parameters imports this module.
    from diffusers.models.embeddings import get_timestep_embedding

    if name == GUIDANCE:
        return get_timestep_embedding(1000 * (value - 1), INPUT_WIDTH, downscale_freq_shift=1)
    return get_timestep_embedding(value, INPUT_WIDTH, downscale_freq_shift=0)
