"""A smaller network with weights of a larger one: its configuration, and the source of each weight."""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from accelerate import init_empty_weights
from torch import Tensor, nn

from fewstep.backbones.inputs import projection_of, set_projection, takes_inputs
from fewstep.core.errors import UserError
from fewstep.core.hardware import to_device

FULL = "full"
"""The size at which nothing is removed."""

LAYER = re.compile(r"(down_blocks|up_blocks)\.\d+\.\w+\.\d+|\w+\.\d+|\w+")
"""A layer of a U-Net's block, a block of a transformer, or any other part."""


@dataclass(frozen=True)
class Reduction:
    """What is removed from a network of diffusers.

    changes: entries of the small network's configuration that differ from the large one's. source: name of
    a weight in the small network -> its name in the large one. features: block of the small network -> layer
    of the large one whose output it learns; both outputs have one shape. channels: weight of a layer whose
    input differs -> how many of its last input channels are those of the large one's layer; the weights of
    the other channels start at 0, the scales of a normalisation at 1. part: what stays or is removed as a
    whole matches it.
    """

    changes: Mapping[str, Any]
    source: Callable[[str], str]
    features: Mapping[str, str]
    channels: Mapping[str, int] = field(default_factory=dict)
    part: re.Pattern[str] = LAYER


def configuration(net: nn.Module, changes: Mapping[str, Any]) -> dict[str, Any]:
    """The network's constructor arguments with some replaced; diffusers' own entries begin with `_`."""
    config: Mapping[str, Any] = net.config  # type: ignore[assignment]
    return {key: value for key, value in config.items() if not key.startswith("_")} | dict(changes)


def reduced(net: nn.Module, reduction: Reduction) -> nn.Module:
    """The small network, a module of its own in evaluation mode, with copies of the large one's weights.

    Raises UserError naming each weight that the large network lacks or has in another shape, and each
    of its weights that is left over in a layer that stays. A copy that fits by chance, such as a 3 x 3
    convolution squeezed to 1 x 1, does not happen.
    """
    with init_empty_weights(include_buffers=False):
        small = type(net)(**configuration(net, reduction.changes))
    if not takes_inputs(net):
        set_projection(small, projection_of(net))
    weights = copied(net.state_dict(), small.state_dict(), reduction)
    small.load_state_dict(weights, strict=True, assign=True)
    is_real = not next(net.parameters()).is_meta
    return (to_device(small) if is_real else small).eval()


def copied(
    large: Mapping[str, Tensor], small: Mapping[str, Tensor], reduction: Reduction
) -> dict[str, Tensor]:
    """Name -> initial value of every weight of the small network; see `reduced`."""
    used = {reduction.source(name) for name in small}
    kept = {layer_of(name, reduction.part) for name in used}
    faults = [
        f"{name}: a weight of the start model without a place in a layer that stays"
        for name in large
        if name not in used and layer_of(name, reduction.part) in kept
    ]
    weights = {}
    for name, wanted in small.items():
        source = reduction.source(name)
        if source not in large:
            faults.append(f"{name}: {source} is not a weight of the start model")
            continue
        weight = large[source].detach()
        if name in reduction.channels:
            weight = on_other_channels(name, weight, wanted, reduction.channels[name])
        if weight.shape != wanted.shape:
            shapes = f"{[*weight.shape]} in the start model's {source}, {[*wanted.shape]} here"
            faults.append(f"{name}: {shapes}")
        weights[name] = torch.clone(weight)
    if faults:
        raise UserError("the smaller network does not fit its start model:\n  " + "\n  ".join(faults))
    return weights


def layer_of(name: str, part: re.Pattern[str] = LAYER) -> str:
    """The part of a network that stays or is removed as a whole, to which a weight belongs."""
    match = part.match(name)
    assert match is not None
    return match.group()


def on_other_channels(name: str, weight: Tensor, wanted: Tensor, last: int) -> Tensor:
    """The weight with only its `last` input channels, after as many new ones as `wanted` has besides.

    Input channels are dimension 1 of a convolution, 0 of a normalisation. New scales of a normalisation are
    1: if they were 0 like the other new weights, neither would ever have a gradient.
    """
    axis = min(1, weight.ndim - 1)
    kept = weight.narrow(axis, weight.shape[axis] - last, last)
    shape = [*kept.shape]
    shape[axis] = wanted.shape[axis] - last
    is_scale = weight.ndim == 1 and name.endswith(".weight")
    return torch.cat([kept.new_full(shape, float(is_scale)), kept], axis)
