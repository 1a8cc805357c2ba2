"""A player's optimiser: which weights, which rate at which step, and how it is kept."""

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from fewstep.config.training import TrainingConfig
from fewstep.training.method import Player


def weights_of(player: Player) -> dict[str, Tensor]:
    """Trained parameters by name, "module/parameter", the same inside and outside a wrapper."""
    return {
        f"{key}/{name.removeprefix('module.')}": value
        for key, module in player.modules.items()
        for name, value in module.named_parameters()
        if value.requires_grad
    }


def optimizer_of(player: Player) -> torch.optim.AdamW:
    """AdamW over a player's weights."""
    training = player.training
    return torch.optim.AdamW(
        list(weights_of(player).values()),
        lr=training.learning_rate,
        betas=training.betas,
        weight_decay=training.weight_decay,
        fused=True,
    )


def learning_rate(training: TrainingConfig, step: int) -> float:
    """Linear warm-up, then decay; a function of the step alone."""
    if step < training.warmup:
        return training.learning_rate * (step + 1) / training.warmup
    share = (step - training.warmup) / max(training.steps - training.warmup, 1)
    factor = {"constant": 1.0, "linear": 1 - share, "cosine": 0.5 * (1 + math.cos(math.pi * share))}
    return training.learning_rate * factor[training.decay]


def optimizer_state(optimizer: torch.optim.Optimizer, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The optimiser's tensors under the names of the weights they belong to."""
    return {
        f"{name}/{slot}": value
        for name, weight in weights.items()
        for slot, value in optimizer.state[weight].items()
    }


def restore_optimizer(
    optimizer: torch.optim.Optimizer, weights: Mapping[str, Tensor], tensors: Mapping[str, Tensor]
) -> None:
    """The inverse of `optimizer_state`. Raises KeyError when a weight has no state."""
    for name, weight in weights.items():
        slots = ("step", "exp_avg", "exp_avg_sq")
        optimizer.state[weight] = {slot: tensors[f"{name}/{slot}"] for slot in slots}
