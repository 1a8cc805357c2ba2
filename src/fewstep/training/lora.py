"""Low-rank students (Hu et al. 2021, "LoRA"): `W + (alpha / rank) B A` on chosen layers, B = 0 at the start.

Networks with adapters of their own (student, fake score, averages) and the one without share one copy of the
base weights. They are separate modules on the same parameters, so adapters are never switched on or off.
The adapter is saved in diffusers' format, for `load_lora_weights` on the network it started from. The network
that later stages use has the adapter merged, so they need no code for it.
"""

import json
from collections.abc import Iterable, Sequence
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from pydantic import Field
from safetensors.torch import save_file
from torch import Tensor, nn

from fewstep.config.base import Section
from fewstep.core.errors import UserError

M = TypeVar("M", bound=nn.Module)
FILE = "pytorch_lora_weights.safetensors"
METADATA = "lora_adapter_metadata"
"""Key of the file's header under which diffusers looks for rank and alpha."""
SETTINGS = {"rank": "r", "alpha": "lora_alpha", "targets": "target_modules"}
"""Name of a setting in `LoraSettings` -> its name in PEFT."""


class LoraSettings(Section):
    """Section `lora` of a method's parameters."""

    rank: int = Field(ge=1)
    alpha: float = Field(gt=0)
    """The update is scaled by alpha / rank."""
    targets: tuple[str, ...] | None = Field(None, min_length=1)
    """Ends of the names of the adapted layers; null: the family's usual ones."""


@dataclass(frozen=True)
class LowRank:
    """A trained adapter. weights: as PEFT names them. config: PEFT's, as plain values."""

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


def attach(net: nn.Module, settings: LoraSettings, usual: Sequence[str], seed: int) -> None:
    """Freeze the network and attach a trainable adapter to it, in place; A is drawn from `seed`.

    usual: targets where the settings name none; those that the network does not have are left out. Raises
    UserError on a target of the settings that matches no layer's name.
    """
    import peft  # takes a second to import, and only adapters need it

    there = [name for name, _ in net.named_modules()]
    targets = settings.targets or [target for target in usual if is_in(target, there)]
    absent = [target for target in targets if not is_in(target, there)]
    if absent or not targets:
        named = ", ".join(absent) or "[]"
        raise UserError(f"lora.targets: {named}: no layer of the network has such a name")
    net.requires_grad_(False)
    torch.manual_seed(seed)
    # PEFT declares alpha an int, but only divides it by the rank, so that a float works too.
    config = peft.LoraConfig(r=settings.rank, lora_alpha=settings.alpha, target_modules=list(targets))  # type: ignore[arg-type]
    try:
        peft.inject_adapter_in_model(config, net)
    except ValueError as error:
        raise UserError(f"lora.targets: {error}") from error


def is_in(target: str, names: Iterable[str]) -> bool:
    """Whether a layer's name is the target or ends in it, as PEFT matches them."""
    return any(f".{name}".endswith(f".{target}") for name in names)


def twin(net: M) -> M:
    """A second network on the same weights: an adapter attached to it does not change the first."""
    return deepcopy(net, {id(weight): weight for weight in net.parameters()})


def detach(net: nn.Module) -> LowRank:
    """Merge the adapter into the network, in place, and return it.

    The adapted layers get copies of their weights first, so that a twin on the same base does not change.
    """
    from peft.tuners.tuners_utils import BaseTunerLayer
    from peft.utils import get_peft_model_state_dict

    weights = {name: value.detach().clone() for name, value in get_peft_model_state_dict(net).items()}
    values = net.peft_config["default"].to_dict()  # type: ignore[union-attr, index]
    config = {name: sorted(value) if isinstance(value, set) else value for name, value in values.items()}
    for name, layer in list(net.named_modules()):
        if isinstance(layer, BaseTunerLayer):
            base: Any = layer.get_base_layer()
            base.weight = nn.Parameter(base.weight.detach().clone(), base.weight.requires_grad)
            layer.merge()
            parent, _, child = name.rpartition(".")
            setattr(net.get_submodule(parent), child, layer.get_base_layer())
    del net.peft_config
    return LowRank(weights, config)
