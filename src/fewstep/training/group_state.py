"""Training state of one optimizer group: weights, optimizers, averages, gradient scale."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from copy import deepcopy

import torch
from torch import Tensor, nn
from torch.nn.utils import clip_grad_norm_

from fewstep.config.training import OptimizerConfig
from fewstep.core.hardware import as_saved, checkpointed, device, mixed_precision, to_device
from fewstep.training.ema import Ema, beside
from fewstep.training.method import KEPT, Group
from fewstep.training.optimization import (
    optimizer_state,
    optimizers_of,
    restore_optimizers,
    restore_scaler,
    scaler_state,
    trained_weights,
)
from fewstep.training.sharding import full_tensor, reshard, shard


class GroupState:
    """A group on this process's device.

    weights: the trained parameters by name, "module/parameter". The set is fixed here: a later change of
    `requires_grad` by a method neither removes a weight from a saved state nor adds one.
    """

    def __init__(self, group: Group) -> None:
        self.group = group
        self.config: OptimizerConfig = group.optimizer
        for module in group.modules.values():
            checkpointed(to_device(module)).train()
        group.averages = {name: averaged_copies(group.modules) for name in group.decays}
        self.unshards: list[Callable[[], None]] = [shard(module) for module in group.modules.values()]
        for copies in group.averages.values():
            for module in copies.values():
                shard(module)
        self.weights = trained_weights(group.modules)
        self.optimizers = optimizers_of(self.weights, group.optimizer)
        self.scaler = torch.amp.GradScaler(device().type, enabled=mixed_precision() == "fp16")
        self.averages = {
            name: Ema(weights_named(copies, self.weights), group.decays[name])
            for name, copies in group.averages.items()
        }
        if group.optimizer.ema is not None:
            self.averages[KEPT] = Ema(beside(self.weights), group.optimizer.ema)

    @contextmanager
    def constant(self) -> Iterator[None]:
        """Gradients pass through the networks to their inputs; their weights receive none."""
        before = {name: weight.requires_grad for name, weight in self.weights.items()}
        for weight in self.weights.values():
            weight.requires_grad_(False)
        try:
            yield
        finally:
            for name, weight in self.weights.items():
                weight.requires_grad_(before[name])

    def forget_gradients(self) -> None:
        """Set the weights' gradients to None; called before and after each group's update."""
        for weight in self.weights.values():
            weight.grad = None

    def gradients(self) -> list[Tensor]:
        """Gradients of all weights that have one."""
        return [weight.grad for weight in self.weights.values() if weight.grad is not None]

    def clipped_norm(self) -> tuple[Tensor, bool]:
        """Clip the gradients. Returns their norm before clipping, and whether it overflowed in float16.

        Waits for the device in float16 only, where an overflow decides what follows.
        """
        for optimizer in self.optimizers:
            self.scaler.unscale_(optimizer)
        norm = full_tensor(clip_grad_norm_(list(self.weights.values()), self.config.clip))
        return norm, self.scaler.get_scale() > 1 and not bool(norm.isfinite())

    def update(self, rate: float, overflown: bool = False) -> None:
        """Step the optimizers at this learning rate, then the averages.

        Where gradients overflowed in float16, no weight and no average changes, the gradient scale is halved
        and training continues.
        """
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = rate
            self.scaler.step(optimizer)
        self.scaler.update()
        if not overflown:
            for average in self.averages.values():
                average.update(self.weights)

    @contextmanager
    def kept_weights(self) -> Iterator[None]:
        """Swap in the weights that would be kept now (the EMA, if there is one), in evaluation mode."""
        modes = {name: module.training for name, module in self.group.modules.items()}
        average = self.averages[KEPT].average if KEPT in self.averages else {}
        before = {name: self.weights[name].detach().clone() for name in average}
        with torch.no_grad():
            copy_into({name: self.weights[name] for name in average}, average)
        for module in self.group.modules.values():
            module.eval()
        try:
            yield
        finally:
            with torch.no_grad():
                copy_into({name: self.weights[name] for name in before}, before)
            for name, module in self.group.modules.items():
                module.train(modes[name])

    def tensors(self) -> dict[str, Tensor]:
        """The state by name."""
        tensors = named("weights", self.weights)
        tensors |= named("optimizer", optimizer_state(self.optimizers, self.weights))
        tensors["scaler"] = scaler_state(self.scaler)
        for name, average in self.averages.items():
            tensors |= named(f"average/{name}/weights", average.average)
            tensors[f"average/{name}/updates"] = torch.tensor(average.updates)
        return tensors

    @torch.no_grad()
    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        """The inverse of `tensors`. Raises KeyError when one is missing."""
        copy_into(self.weights, within("weights", tensors))
        restore_scaler(self.scaler, tensors["scaler"])
        restore_optimizers(self.optimizers, self.weights, within("optimizer", tensors))
        for name, average in self.averages.items():
            copy_into(average.average, within(f"average/{name}/weights", tensors))
            average.updates = int(tensors[f"average/{name}/updates"])

    @torch.no_grad()
    def finish(self, chosen: Mapping[str, Tensor]) -> None:
        """Leave the chosen weights in ordinary modules in evaluation mode.

        chosen: by name; where it is empty, the EMA of the weights or, without one, the final weights.
        """
        if chosen:
            copy_into(self.weights, chosen)
        elif KEPT in self.averages:
            copy_into(self.weights, self.averages[KEPT].average)
        for unshard in self.unshards:
            unshard()
        for module in self.group.modules.values():
            as_saved(module).eval()


def averaged_copies(modules: Mapping[str, nn.Module]) -> dict[str, nn.Module]:
    """Copies of networks: trained weights are copied in float32, frozen weights are shared."""
    shared = {id(w): w for module in modules.values() for w in module.parameters() if not w.requires_grad}
    copies = {name: deepcopy(module, dict(shared)) for name, module in modules.items()}
    for copy in copies.values():
        for weight in copy.parameters():
            if weight.requires_grad:
                weight.data = weight.data.float()
        copy.eval().requires_grad_(False)
    return copies


def weights_named(modules: Mapping[str, nn.Module], like: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Parameters of copies by the names of the originals' trained weights."""
    weights = {}
    for name in like:
        key, _, parameter = name.partition("/")
        weights[name] = modules[key].get_parameter(parameter).detach()
    return weights


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
        target.copy_(reshard(sources[name], target))
