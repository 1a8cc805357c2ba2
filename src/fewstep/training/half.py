"""Frozen weights in half precision: bit-identical results with half the memory.

Autocast rounds the weights of linear and convolutional layers at every call, and never those of other layers.
Here the frozen weights of linear and convolutional layers are rounded once instead. Artifacts are float32:
before an adapter is merged, `restore_frozen` takes the weights of the start model's artifact.
"""

from collections.abc import Iterable, Iterator

import torch
from torch import Tensor, nn

from fewstep.core.hardware import DTYPES, mixed_precision
from fewstep.core.heap import give_back
from fewstep.core.switches import switch
from fewstep.training.sharding import is_sharded
from fewstep.training.sharding import is_wanted as in_shards

LAYERS = (
    nn.Linear,
    nn.Conv1d,
    nn.Conv2d,
    nn.Conv3d,
    nn.ConvTranspose1d,
    nn.ConvTranspose2d,
    nn.ConvTranspose3d,
)


def halve_frozen(networks: Iterable[nn.Module]) -> None:
    """Round the frozen weights that autocast would, in place.

    Not rounded are FSDP-sharded networks, whose blocks need one dtype each, and networks that run without
    autocast (`force_upcast` in an autoencoder's configuration).
    """
    dtype = half()
    if dtype is None:
        return
    for net in networks:
        if getattr(getattr(net, "config", None), "force_upcast", False):
            continue
        for weight in rounded_by_autocast(net):
            if not weight.requires_grad:
                weight.data = weight.data.to(dtype)
    give_back()


def half() -> torch.dtype | None:
    """The dtype of frozen weights on this machine; None: they stay float32.

    That of autocast, unless FEWSTEP_HALF_FROZEN is 0.
    """
    return None if switch("HALF_FROZEN", "") == "0" or in_shards() else DTYPES[mixed_precision()]


def is_whole(weight: Tensor) -> bool:
    """Whether a weight has the precision of artifacts, and all its elements in this process."""
    return weight.dtype == torch.float32 and not is_sharded(weight)


def rounded_by_autocast(net: nn.Module) -> Iterator[nn.Parameter]:
    """Weights and biases of linear and convolutional layers."""
    for layer in net.modules():
        if isinstance(layer, LAYERS):
            yield from layer.parameters(recurse=False)


def restore_frozen(net: nn.Module, whole: nn.Module) -> None:
    """Undo `halve_frozen` in place for `net`, with or without an adapter; whole: the network without one."""
    weights = dict(whole.named_parameters())
    for name, weight in net.named_parameters():
        original = weights.get(name.replace(".base_layer", ""))
        if original is not None and weight.dtype != original.dtype:
            weight.data = original.data.to(weight.device)
