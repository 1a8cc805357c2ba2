"""Saves and opens networks whose folder describes their architecture, independent of the teacher's."""

import importlib
from collections.abc import Mapping
from operator import attrgetter
from pathlib import Path
from typing import Any

from safetensors.torch import load_model, save_model
from torch import nn

from fewstep.backbones.parts import forget_origin, load_part
from fewstep.core.errors import UserError
from fewstep.core.files import read_json, write_json
from fewstep.core.hardware import device, to_device

CONFIG, ARCHITECTURE, WEIGHTS = "config.json", "architecture.json", "weights.safetensors"


def save_network(net: nn.Module, folder: Path) -> None:
    """Save a diffusers or transformers network in its library's format, any other with `save_own`."""
    if hasattr(net, "save_pretrained"):
        net.save_pretrained(folder)  # type: ignore[operator]
        forget_origin(folder)
    else:
        save_own(net, folder)


def open_network(folder: Path) -> nn.Module:
    """Open a `save_network` folder, on the device, in evaluation mode. Raises UserError naming the folder."""
    if not (folder / CONFIG).exists():
        return open_own(folder, untrained(folder))
    config = read_json(folder / CONFIG)
    in_diffusers = "_class_name" in config
    library, kind = ("diffusers" if in_diffusers else "transformers"), config.get("_class_name")
    net: nn.Module = to_device(load_part(library, kind or config["architectures"][0], folder))
    return net.eval()


def save_own(net: nn.Module, folder: Path) -> None:
    """Save the weights, and beside them the network's class and constructor arguments (attribute `config`).

    For a network without that attribute, the caller of `open_own` has to construct the network.
    """
    folder.mkdir(parents=True, exist_ok=True)
    config = getattr(net, "config", None)
    if isinstance(config, Mapping):
        kind = type(net)
        write_json(
            folder / ARCHITECTURE,
            {"class": f"{kind.__module__}:{kind.__qualname__}", "config": dict(config)},
        )
    save_model(net, str(folder / WEIGHTS))


def untrained(folder: Path) -> nn.Module:
    """An untrained network as `architecture.json` describes it. Raises UserError naming the file."""
    if not (folder / ARCHITECTURE).exists():
        raise UserError(f"{folder}: neither {CONFIG} nor {ARCHITECTURE} says what network this is")
    described = read_json(folder / ARCHITECTURE)
    try:
        module, _, name = described["class"].partition(":")
        kind: Any = attrgetter(name)(importlib.import_module(module))
        net: nn.Module = kind(**described["config"])
    except (KeyError, ImportError, AttributeError, TypeError) as error:
        raise UserError(f"{folder / ARCHITECTURE}: no network can be made from it: {error}") from error
    return net


def open_own(folder: Path, net: nn.Module) -> nn.Module:
    """Load the folder's weights into the network, strictly. Raises UserError if they do not fit."""
    try:
        load_model(net, folder / WEIGHTS, device=str(device()))
    except (OSError, RuntimeError) as error:
        raise UserError(f"{folder / WEIGHTS}: does not fit the model of this teacher: {error}") from error
    return net.to(device()).eval()
