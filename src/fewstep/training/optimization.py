"""A group's optimizers: which weights, which learning rate at which step, and how they are saved."""

import importlib
import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from fewstep.config.training import OptimizerConfig
from fewstep.core.errors import UserError
from fewstep.training.muon import Muon, is_hidden
from fewstep.training.sharding import is_wanted, reshard


def trained_weights(modules: Mapping[str, nn.Module]) -> dict[str, Tensor]:
    """Parameters with `requires_grad` by name, "module/parameter"."""
    return {
        f"{key}/{name}": value
        for key, module in modules.items()
        for name, value in module.named_parameters()
        if value.requires_grad
    }


def optimizers_of(weights: Mapping[str, Tensor], config: OptimizerConfig) -> list[torch.optim.Optimizer]:
    """AdamW over a group's weights; for `muon`, Muon over the hidden ones. An adapter's are all hidden.

    weights: by name, "module/parameter".
    """
    hidden = [w for name, w in weights.items() if config.optimizer == "muon" and is_hidden(name, w)]
    theirs = {id(weight) for weight in hidden}
    others = [weight for weight in weights.values() if id(weight) not in theirs]
    optimizers = [adamw(others, config)] if others else []
    if hidden:
        optimizers.append(Muon(hidden, config.learning_rate, weight_decay=config.weight_decay))
    return optimizers


def adamw(weights: Sequence[Tensor], config: OptimizerConfig) -> torch.optim.Optimizer:
    """AdamW, or its 8-bit version for `adamw_8bit`. Raises UserError where that is not installed."""
    options = {"lr": config.learning_rate, "betas": config.betas, "weight_decay": config.weight_decay}
    if config.optimizer != "adamw_8bit":
        return torch.optim.AdamW(weights, **options, fused=True)  # type: ignore[arg-type]
    if is_wanted():
        raise UserError("training.optimizer = adamw_8bit: not for networks in shards (FSDP); choose another")
    try:
        library = importlib.import_module("bitsandbytes.optim")
    except ImportError:
        raise UserError("training.optimizer = adamw_8bit: `pip install bitsandbytes` first") from None
    small: torch.optim.Optimizer = library.AdamW8bit(weights, **options)
    return small


def learning_rate(config: OptimizerConfig, step: int, steps: int) -> float:
    """Linear warm-up, then decay to 0 at `steps`, one after the last step; a function of the step.

    step: of the training, from 0 to `steps - 1`, also for a group that is not updated at every step.
    """
    if step < config.warmup:
        return config.learning_rate * (step + 1) / config.warmup
    share = (step - config.warmup) / max(steps - config.warmup, 1)
    factor = {"constant": 1.0, "linear": 1 - share, "cosine": 0.5 * (1 + math.cos(math.pi * share))}
    return config.learning_rate * factor[config.decay]


def optimizer_state(
    optimizers: Sequence[torch.optim.Optimizer], weights: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """The optimizers' state tensors, and step counts as tensors, by the name of their weight."""
    names = {id(weight): name for name, weight in weights.items()}
    return {
        f"{names[id(weight)]}/{slot}": torch.as_tensor(value)
        for optimizer in optimizers
        for weight, slots in optimizer.state.items()
        for slot, value in slots.items()
    }


def restore_optimizers(
    optimizers: Sequence[torch.optim.Optimizer], weights: Mapping[str, Tensor], tensors: Mapping[str, Tensor]
) -> None:
    """The inverse of `optimizer_state`."""
    slots: dict[str, dict[str, Tensor | int]] = {name: {} for name in weights}
    for key, value in tensors.items():
        name, slot = key.rsplit("/", 1)
        # bitsandbytes counts its steps in Python integers, torch in float tensors.
        is_count = value.ndim == 0 and value.dtype == torch.int64
        slots[name][slot] = int(value) if is_count else reshard(value, weights[name])
    names = {id(weight): name for name, weight in weights.items()}
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            for weight in group["params"]:
                optimizer.state[weight] = slots[names[id(weight)]]


def scaler_state(scaler: torch.amp.GradScaler) -> Tensor:
    """A gradient scaler's scale, and the number of steps since it last changed."""
    state = scaler.state_dict()
    return torch.tensor([state.get("scale", 1.0), state.get("_growth_tracker", 0)], dtype=torch.float64)


def restore_scaler(scaler: torch.amp.GradScaler, tensor: Tensor) -> None:
    """The inverse of `scaler_state`."""
    if scaler.is_enabled():
        scale, tracker = tensor.tolist()
        scaler.load_state_dict(scaler.state_dict() | {"scale": scale, "_growth_tracker": int(tracker)})
