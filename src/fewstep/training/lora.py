"""Low-rank students (Hu et al. 2021, "LoRA"): `W + (alpha / rank) B A` on chosen layers, B = 0 at the start.

Networks with adapters of their own (student, fake score, averages) and the one without share one copy of the
base weights. They are separate modules on the same parameters (`twin`), so adapters are never switched on or
off. Weights of inputs that the base does not have are trained whole, and belong to the adapter.
The adapter is saved in diffusers' format, for `load_lora_weights` on the network it started from. A model is
opened with its adapters merged (backbones/model.py), so later stages need no code for them.
"""

from collections.abc import Collection, Iterable, Sequence

import torch
from pydantic import Field
from torch import nn

from fewstep.backbones.low_rank import LAYER, LowRank, fold
from fewstep.config.base import Section
from fewstep.core.errors import UserError


class LoraSettings(Section):
    """Section `lora` of a method's parameters."""

    rank: int = Field(ge=1)
    alpha: float = Field(gt=0)
    """The update is scaled by alpha / rank."""
    targets: tuple[str, ...] | None = Field(None, min_length=1)
    """Ends of the names of the adapted layers; null: the family's usual ones."""


def attach(
    net: nn.Module, settings: LoraSettings, usual: Sequence[str], seed: int, whole: Collection[str] = ()
) -> None:
    """Freeze the network and attach a trainable adapter to it, in place; A is drawn from `seed`.

    usual: targets where the settings name none; those that the network does not have are left out. whole:
    weights that are trained themselves. Raises UserError on a target of the settings that matches no layer's
    name.
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
    for name in whole:
        net.get_parameter(name).requires_grad_(True)


def is_in(target: str, names: Iterable[str]) -> bool:
    """Whether a layer's name is the target or ends in it, as PEFT matches them."""
    return any(f".{name}".endswith(f".{target}") for name in names)


def detach(net: nn.Module) -> LowRank:
    """Merge the adapter into the network, in place, and return it. Twins on the same base do not change."""
    from peft.utils import get_peft_model_state_dict

    weights = dict(get_peft_model_state_dict(net))
    weights |= {n: weight for n, weight in net.named_parameters() if weight.requires_grad and LAYER not in n}
    weights = {name: value.detach().clone() for name, value in weights.items()}
    values = net.peft_config["default"].to_dict()  # type: ignore[union-attr, index]
    config = {name: sorted(value) if isinstance(value, set) else value for name, value in values.items()}
    fold(net, ["default"])
    return LowRank(weights, config)
