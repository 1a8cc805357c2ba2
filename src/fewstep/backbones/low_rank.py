"""Low-rank adapters: their file, and how they are merged into the network that they were trained on.

A model that differs from its teacher by adapters alone is stored as these. Adapters are merged in the same
order and precision wherever the model is opened.
"""

import json
import warnings
from collections.abc import Iterator, Sequence
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self, TypeVar

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

M = TypeVar("M", bound=nn.Module)
FILE = "pytorch_lora_weights.safetensors"
METADATA = "lora_adapter_metadata"
"""Key of the file's header under which diffusers looks for rank and alpha."""
LAYER = ".lora_"
"""Between the names of an adapted layer and of a factor."""
SETTINGS = {"rank": "r", "alpha": "lora_alpha", "targets": "target_modules"}
"""Name of a setting in `LoraSettings` -> its name in PEFT."""


@dataclass(frozen=True)
class LowRank:
    """A trained adapter. weights: as PEFT names them. config: PEFT's, as plain values.

    weights also has, by their names in the network, those of inputs that the network's start does not take.
    """

    weights: dict[str, Tensor]
    config: dict[str, Any]

    @property
    def metadata(self) -> dict[str, Any]:
        """Its metadata in a manifest."""
        settings = {name: self.config[key] for name, key in SETTINGS.items()}
        return settings | {"parameters": sum(weight.numel() for weight in self.weights.values())}

    def save(self, folder: Path, part: str) -> None:
        """Write `folder / FILE`; part: component of the pipeline that the adapter is for, such as `unet`."""
        folder.mkdir(parents=True, exist_ok=True)
        header = {f"{part}.{name}": value for name, value in self.config.items()}
        named = {f"{part}.{name}": value.contiguous().cpu() for name, value in self.weights.items()}
        save_file(named, folder / FILE, metadata={METADATA: json.dumps(header, sort_keys=True)})

    @classmethod
    def open(cls, folder: Path, part: str) -> Self:
        """Read `folder / FILE`, into host memory."""
        with safe_open(folder / FILE, "pt") as file:
            header = json.loads(file.metadata()[METADATA])
        weights = {name.removeprefix(f"{part}."): value for name, value in load_file(folder / FILE).items()}
        return cls(weights, {name.removeprefix(f"{part}."): value for name, value in header.items()})

    def is_the_only_change(self, net: nn.Module, start: nn.Module) -> bool:
        """Whether every weight and buffer outside of the adapted weights is that of the start.

        net: the network with the adapter merged. start: the network that it was trained on.
        """
        factors = {name for name in self.weights if LAYER in name}
        adapted = {f"{name.partition(LAYER)[0]}.weight" for name in factors}
        before = start.state_dict()

        def follows(name: str, value: Tensor) -> bool:
            if name not in before:
                return name in self.weights
            return name in adapted or torch.equal(value, before[name])

        return all(follows(name, value) for name, value in net.state_dict().items())


def twin(net: M) -> M:
    """A second network on the same weights: an adapter attached to it does not change the first."""
    return deepcopy(net, {id(weight): weight for weight in net.parameters()})


def merge(net: nn.Module, adapters: Sequence[LowRank]) -> None:
    """Merge adapters into the network, in place; see `fold`. Raises ValueError where one does not fit it."""
    from peft import LoraConfig, inject_adapter_in_model  # takes a second to import; only adapters need it
    from peft.utils import set_peft_model_state_dict

    trainable = {name: weight.requires_grad for name, weight in every_weight(net)}
    names = [f"adapter{i}" for i in range(len(adapters))]
    for name, adapter in zip(names, adapters, strict=True):
        # New layers draw initial values, which are not used; no other random number may depend on that.
        with warnings.catch_warnings(), torch.random.fork_rng(devices=[]):
            warnings.filterwarnings("ignore", "Already found a `peft_config` attribute")
            inject_adapter_in_model(LoraConfig(**adapter.config), net, name, low_cpu_mem_usage=True)
        factors = {name: weight for name, weight in adapter.weights.items() if LAYER in name}
        result: Any = set_peft_model_state_dict(net, factors, name, low_cpu_mem_usage=True)
        if result.unexpected_keys or any(weight.is_meta for weight in net.parameters()):
            raise ValueError("the adapter's layers are not those that its configuration names")
    fold(net, names)
    inputs = {n: weight for each in adapters for n, weight in each.weights.items() if LAYER not in n}
    if net.load_state_dict(inputs, strict=False).unexpected_keys:
        raise ValueError("the network lacks an input of the adapter")
    for name, weight in every_weight(net):
        weight.requires_grad_(trainable[name])


def every_weight(net: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    """Name and weight; a weight that two layers share has two names."""
    return net.named_parameters(remove_duplicate=False)


@torch.no_grad()
def fold(net: nn.Module, names: Sequence[str]) -> None:
    """Merge PEFT's adapters of these names into the network and remove them from it, in place.

    A layer's weight is the sum of its weight and the adapters' updates, in the order of `names`, in float64
    on the CPU, so that it does not depend on the device. It is rounded once. The weight is a new tensor: a
    network that shared the old one does not change.
    """
    from peft.tuners.tuners_utils import BaseTunerLayer

    for name, module in list(net.named_modules()):
        if not isinstance(module, BaseTunerLayer):
            continue
        layer: Any = module
        for factor in layer.adapter_layer_names:
            getattr(layer, factor).cpu().double()
        base = layer.get_base_layer()
        total = base.weight.cpu().double()
        for adapter in names:
            if adapter in layer.scaling:
                total += layer.get_delta_weight(adapter)
        base.weight = nn.Parameter(base.weight.clone().copy_(total), base.weight.requires_grad)
        parent, _, child = name.rpartition(".")
        setattr(net.get_submodule(parent), child, base)
    del net.peft_config
