"""A smaller network with weights of a larger one: its configuration, and the source of each weight."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from accelerate import init_empty_weights
from torch import Tensor, nn

from fewstep.core.errors import UserError
from fewstep.core.hardware import to_device

FULL = "full"
"""The size at which nothing is removed."""


@dataclass(frozen=True)
class Surgery:
    """What is removed from a network of diffusers.

    changes: entries of the small network's configuration that differ from the large one's. source: name of
    a weight in the small network -> its name in the large one. features: block of the small network -> layer
    of the large one whose output it learns; both outputs have one shape.
    """

    changes: Mapping[str, Any]
    source: Callable[[str], str]
    features: Mapping[str, str]


def configuration(net: nn.Module, changes: Mapping[str, Any]) -> dict[str, Any]:
    """The network's constructor arguments with some replaced; diffusers' own entries begin with `_`."""
    config: Mapping[str, Any] = net.config  # type: ignore[assignment]
    return {key: value for key, value in config.items() if not key.startswith("_")} | dict(changes)


def operated(net: nn.Module, surgery: Surgery) -> nn.Module:
    """The small network, a module of its own in evaluation mode, with copies of the large one's weights.

    Every weight is copied, so none has to be initialised. Raises UserError naming each weight that the large
    network does not have, or has in another shape: a copy that fits by chance, such as a 3 x 3 convolution
    squeezed to 1 x 1, does not happen.
    """
    with init_empty_weights(include_buffers=False):
        small = type(net)(**configuration(net, surgery.changes))
    weights = copied(net.state_dict(), small.state_dict(), surgery.source)
    small.load_state_dict(weights, strict=True, assign=True)
    if next(net.parameters()).is_meta:
        return small.to("meta").eval()
    return to_device(small).eval()


def copied(
    large: Mapping[str, Tensor], small: Mapping[str, Tensor], source: Callable[[str], str]
) -> dict[str, Tensor]:
    """Name -> copy of the large network's weight for every weight of the small one; see `operated`."""
    faults, found = [], {}
    for name, wanted in small.items():
        weight = large.get(source(name))
        if weight is None:
            faults.append(f"{name}: {source(name)} is not a weight of the start model")
        elif weight.shape != wanted.shape:
            shapes = f"{[*weight.shape]} in the start model's {source(name)}, {[*wanted.shape]} here"
            faults.append(f"{name}: {shapes}")
        else:
            found[name] = torch.clone(weight.detach())
    if faults:
        raise UserError("the smaller network does not fit its start model:\n  " + "\n  ".join(faults))
    return found
