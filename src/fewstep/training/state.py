"""What changes while a method trains: the step, weights, averages and optimisers."""

import math
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.utils import clip_grad_norm_

from fewstep.artifacts.folder import write_json
from fewstep.errors import UserError
from fewstep.hardware import device, frugal, mixed_precision, placed, plain
from fewstep.processes import is_main
from fewstep.training.checkpoint import load_state, save_state
from fewstep.training.ema import Ema
from fewstep.training.method import Method
from fewstep.training.optimization import (
    optimizer_state,
    optimizers_of,
    restore_optimizers,
    restore_scaler,
    scaler_state,
    weights_of,
)
from fewstep.training.sharding import part, shard, whole

EXPLODED = 1000.0
"""A loss or gradient norm this many times its running mean stops the training."""
SETTLED = 50
"""Steps after which running means are trusted."""


class State:
    """Everything a resumed step needs, on this process's device.

    folder: where whole states are kept.
    """

    def __init__(self, method: Method, folder: Path) -> None:
        self.method, self.folder, self.step = method, folder, 0
        self.means: dict[str, float] = {}
        for module in method.frozen:
            module.requires_grad_(False).eval().to(device())
        self.optimizers: dict[str, list[torch.optim.Optimizer]] = {}
        self.averages: dict[str, Ema] = {}
        self.joins: list[Callable[[], None]] = []
        half = mixed_precision() == "fp16"
        self.scalers = {label: torch.amp.GradScaler(device().type, enabled=half) for label in method.players}
        for label, player in method.players.items():
            for module in player.modules.values():
                self.joins.append(shard(frugal(placed(module)).train()))
            self.optimizers[label] = optimizers_of(player)
            if player.training.ema is not None:
                self.averages[label] = Ema(weights_of(player), player.training.ema)

    def guard(self, what: str, value: Tensor, positions: range) -> float:
        """The value as a number, unless it is not finite or has exploded: then the training stops.

        Raises UserError with the step and the batch's keys; the last state on disk stays as it is.
        """
        size = float(value.detach())
        mean = self.means.get(what, size)
        exploded = self.step > SETTLED and size > EXPLODED * mean > 0
        if math.isfinite(size) and not exploded:
            self.means[what] = 0.98 * mean + 0.02 * size
            return size
        record = self.folder / "failed_batch.json"
        if is_main():
            write_json(record, {"step": self.step, "positions": list(positions), what: repr(size)})
        raise UserError(
            f"{self.folder.name}: {what} became {size:.4g} at step {self.step}, on samples {positions[0]} to "
            f"{positions[-1]} of the keyed order (listed in {record}); the last good state is beside it. "
            "Lower learning_rate or look at these samples, then run `dvc repro` again"
        )

    def update(self, label: str, rate: float, positions: range) -> float:
        """Step a player's optimisers and average from the gradients at hand. Returns the gradients' norm.

        Gradients that overflowed in float16 change no weight: their scale is halved, and training goes on.
        """
        player, scaler = self.method.players[label], self.scalers[label]
        weights = weights_of(player)
        for optimizer in self.optimizers[label]:
            scaler.unscale_(optimizer)
        norm = whole(clip_grad_norm_(list(weights.values()), player.training.clip))
        overflown = scaler.get_scale() > 1 and not norm.isfinite()
        size = float(norm) if overflown else self.guard(f"{label} gradient norm", norm, positions)
        for optimizer in self.optimizers[label]:
            for group in optimizer.param_groups:
                group["lr"] = rate
            scaler.step(optimizer)
            optimizer.zero_grad()
        scaler.update()
        if label in self.averages:
            self.averages[label].update(weights, self.step)
        return size

    def tensors(self) -> dict[str, Tensor]:
        """The state by name."""
        found: dict[str, Tensor] = {}
        for label, player in self.method.players.items():
            weights = weights_of(player)
            found |= named(f"weights/{label}", weights)
            found |= named(f"optimizer/{label}", optimizer_state(self.optimizers[label], weights))
            found[f"scaler/{label}"] = scaler_state(self.scalers[label])
        for label, ema in self.averages.items():
            found |= named(f"average/{label}", ema.average)
        return found

    def save(self) -> None:
        """Write the state whole; the main process does, all call this at once."""
        found: dict[str, Tensor] = {}
        for name, value in self.tensors().items():
            gathered = whole(value.detach())
            if is_main():
                found[name] = gathered.cpu()
        if is_main():
            save_state(self.folder, self.step, found)

    @torch.no_grad()
    def resume(self) -> None:
        """Take up the newest state on disk, if there is one."""
        found = load_state(self.folder)
        if found is None:
            return
        self.step, tensors = found
        for label, player in self.method.players.items():
            weights = weights_of(player)
            copy_into(weights, within(f"weights/{label}", tensors))
            restore_scaler(self.scalers[label], tensors[f"scaler/{label}"])
            restore_optimizers(self.optimizers[label], weights, within(f"optimizer/{label}", tensors))
        for label, ema in self.averages.items():
            copy_into(ema.average, within(f"average/{label}", tensors))
        print(f"{self.folder.name}: resumes at step {self.step}", flush=True)

    @torch.no_grad()
    def finish(self) -> None:
        """Leave the final weights (their average, where one is kept) in the modules, for evaluation."""
        for label, ema in self.averages.items():
            copy_into(weights_of(self.method.players[label]), ema.average)
        for join in self.joins:
            join()
        for player in self.method.players.values():
            for module in player.modules.values():
                plain(module).eval()


def named(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors under a common prefix."""
    return {f"{prefix}/{name}": value for name, value in tensors.items()}


def within(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The inverse of `named`."""
    start = f"{prefix}/"
    return {name.removeprefix(start): value for name, value in tensors.items() if name.startswith(start)}


def copy_into(targets: Mapping[str, Tensor], sources: Mapping[str, Tensor]) -> None:
    """Overwrite tensors in place. Raises KeyError when one is missing."""
    for name, target in targets.items():
        target.copy_(part(sources[name], target))
