"""One training step on fake tensors: how many bytes are live at each moment, how many operations it takes.

The network is built of fake tensors: on the device and in the precision of a training, with shapes and types
but no numbers. Forward pass, backward pass, clipping and optimizer run as they do in training, so that
activations, gradients and temporary buffers are counted where they are live together. Not seen: what a
kernel allocates for itself, and what the allocator loses between blocks.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial
from typing import Any
from weakref import ref

import numpy as np
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.utils import clip_grad_norm_
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.checkpoint import checkpoint
from torch.utils.flop_counter import flop_registry

from fewstep.backbones.registry import family
from fewstep.config.training import TrainingConfig
from fewstep.core.hardware import attention, autocast, device
from fewstep.diffusion.denoiser import Conditions, Prediction
from fewstep.diffusion.schedules import RectifiedFlow
from fewstep.training.half import rounded_by_autocast
from fewstep.training.lora import LoraSettings, attach
from fewstep.training.optimization import optimizers_of, trained_weights

ROWS = 127
"""Samples of the traced step: a prime, so that a size divisible by it is a batch's and not a weight's."""


@dataclass(frozen=True)
class Design:
    """A denoiser that need not be there yet.

    backbone: its family. make: builds it, untrained. length: tokens of a prompt; None: the family's usual.
    pipeline: class of its pipeline, where the family has several.
    """

    backbone: str
    make: Callable[[], nn.Module]
    length: int | None = None
    pipeline: str | None = None

    @property
    def kind(self) -> Any:
        """Its adapter's class."""
        return family(self.backbone).of(self.pipeline)


@dataclass(frozen=True)
class Kind:
    """What a step's course depends on, apart from the number of samples.

    accumulates: whether it goes through the network in several micro-batches, so that gradients are there
    from the beginning. checkpointed: whether activations are recomputed.
    """

    optimizer: str
    lora: LoraSettings | None = None
    checkpointed: bool = False
    accumulates: bool = False


@dataclass(frozen=True, eq=False)
class Trace:
    """Numbers of weights, the optimizer's bytes, and the step's course; see `peak`.

    rounded: weights under an adapter that are kept in half precision where the machine has autocast.

    fixed, per_row: bytes live after each operation, beside weights and optimizer state: those of no batch,
    and per sample. Empty where the network's conditions are unknown. operations: per sample, both passes.
    """

    parameters: int
    trained: int
    rounded: int
    optimizer: int
    fixed: np.ndarray
    per_row: np.ndarray
    operations: int | None

    def peak(self, rows: int) -> int | None:
        """Most bytes live at once in a step of `rows` samples, beside weights and optimizer state."""
        return int((self.fixed + rows * self.per_row).max()) if len(self.fixed) else None


class LiveBytes(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Follows every storage that is allocated inside until it is freed; views share one.

    A size that `rows` divides is taken for a batch's. history: (bytes of no batch, bytes of batches) after
    each operation. operations: floating-point ones so far, as FlopCounterMode counts them; that mode itself
    keeps tensors alive that checkpointing frees.
    """

    def __init__(self, rows: int) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.rows, self.live, self.operations = rows, [0, 0], 0
        self.history: list[tuple[int, int]] = []
        # By identity: fake storages have no address.
        self.followed: dict[int, ref[Any]] = {}

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        results = func(*args, **kwargs)
        if count := flop_registry.get(func._overloadpacket):
            self.operations += count(*args, **kwargs, out_val=results)
        for value in tree_leaves(results):
            if isinstance(value, Tensor):
                self.follow(value)
        self.history.append((self.live[0], self.live[1]))
        return results

    def follow(self, tensor: Tensor) -> None:
        """Count a tensor's storage, unless it is counted already."""
        storage = tensor.untyped_storage()
        key, size = storage._cdata, storage.nbytes()
        if key in self.followed:
            return
        kind = int(size > 0 and (size // tensor.itemsize) % self.rows == 0)

        def freed(_: Any) -> None:
            del self.followed[key]
            self.live[kind] -= size

        self.followed[key] = ref(storage, freed)
        self.live[kind] += size


@cache
def trace(design: Design, kind: Kind) -> Trace:
    """Build the denoiser without weights and train it for one step on ROWS samples."""
    with torch.device("meta"):
        net = design.make()
        if kind.lora is not None:
            attach(net, kind.lora, design.kind.lora_targets, 0)
    trained = [weight for weight in net.parameters() if weight.requires_grad]
    # On meta tensors, which are faster: an optimizer does the same on every device.
    optimizers = optimizers_for(net, kind.optimizer)
    adamw = [optimizer for optimizer in optimizers if isinstance(optimizer, torch.optim.AdamW)]
    others = [optimizer for optimizer in optimizers if optimizer not in adamw]
    update(trained, others)
    with LiveBytes(ROWS) as live:
        update(trained, others)
    weights = sum(weight.numel() for weight in trained)
    gradients = sum(weight.numel() * weight.itemsize for weight in trained)
    # Fused, it has two averages, needs no buffers, and refuses meta tensors.
    state = sum(2 * w.numel() * w.itemsize for each in adamw for w in each.param_groups[0]["params"])
    state = state + optimizer_bytes(others) if optimizers else 2 * weights
    rounded = sum(weight.numel() for weight in rounded_by_autocast(net) if not weight.requires_grad)
    counts = (sum(weight.numel() for weight in net.parameters()), weights, rounded, state)
    with FakeTensorMode():
        # Not `to_empty`, which reads the meta tensors; built fake, PEFT could not move them.
        net._apply(lambda tensor: torch.empty(tensor.shape, dtype=tensor.dtype, device=device()))  # type: ignore[no-untyped-call]
        found = passes(design, kind, net)
    if found is None:
        return Trace(*counts, np.empty(0), np.empty(0), None)
    fixed, batches = np.array(found.history + live.history, dtype=np.int64).T
    if kind.accumulates:
        fixed[: len(found.history)] += gradients
    return Trace(*counts, fixed, batches // ROWS, found.operations // ROWS)


def optimizers_for(net: nn.Module, optimizer: str) -> list[torch.optim.Optimizer]:
    """A training's; none for `adamw_8bit`, whose kernels know no such tensors and need no buffers."""
    if optimizer == "adamw_8bit":
        return []
    training = TrainingConfig(steps=1, batch_size=1, learning_rate=1e-3, optimizer=optimizer)
    return optimizers_of(trained_weights({"net": net}), training)


def update(trained: list[nn.Parameter], optimizers: list[torch.optim.Optimizer]) -> None:
    """What follows the backward pass, from gradients of zero."""
    for weight in trained:
        weight.grad = torch.zeros_like(weight)
    clip_grad_norm_(trained, 1.0)
    for optimizer in optimizers:
        optimizer.step()
    for weight in trained:
        weight.grad = None


def optimizer_bytes(optimizers: list[torch.optim.Optimizer]) -> int:
    """Bytes of their states; step counts, a number per weight, are left out."""
    slots = [value for each in optimizers for state in each.state.values() for value in state.values()]
    return sum(value.numel() * value.itemsize for value in slots if isinstance(value, Tensor) and value.ndim)


def passes(design: Design, kind: Kind, net: Any) -> LiveBytes | None:
    """A forward and a backward pass of ROWS samples; None where the network's conditions are unknown."""
    # Only asked how its network is called, which depends on no schedule.
    backbone = design.kind({}, RectifiedFlow(), Prediction.FLOW)
    example: Conditions | None = backbone.example_conditions(net, ROWS, design.length)
    if example is None:
        return None
    conditions = {name: value.to(device()) for name, value in example.items()}
    if kind.checkpointed and hasattr(net, "enable_gradient_checkpointing"):
        # The generator's state, which diffusers' own function keeps, is no fake tensor.
        net.enable_gradient_checkpointing(partial(checkpoint, use_reentrant=False, preserve_rng_state=False))
    for weight in net.train().parameters():
        there = kind.accumulates and weight.requires_grad
        weight.grad = torch.zeros_like(weight) if there else None
    side = net.config.sample_size
    x = torch.zeros(ROWS, net.config.in_channels, side, side, device=device())
    time = torch.ones(ROWS, device=device())
    with LiveBytes(ROWS) as live:
        with autocast():
            loss = backbone.network(net)(x, time, conditions).float().square().mean()
        with attention():
            loss.backward()
    return live
