"""Traces one training step on fake tensors: live bytes after each operation, and floating-point operations.

The network is built of fake tensors: they have the training's device, shapes and dtypes, but no values.
Forward pass, backward pass, gradient clipping and optimizer run as they do in training, so that activations,
gradients and temporary buffers are counted while they are live together. Not counted: memory that kernels
allocate internally, and the allocator's fragmentation.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.utils import clip_grad_norm_
from torch.utils.checkpoint import checkpoint

from fewstep.backbones.registry import family
from fewstep.checks.live_bytes import LiveBytes
from fewstep.config.training import TrainingConfig
from fewstep.core.hardware import attention, autocast, can_recompute, device
from fewstep.diffusion.denoiser import Conditions, Prediction
from fewstep.diffusion.schedules import RectifiedFlow
from fewstep.training.half import rounded_by_autocast
from fewstep.training.lora import LoraSettings, attach
from fewstep.training.optimization import optimizers_of, trained_weights

M = TypeVar("M", bound=nn.Module)
ROWS = 127
"""Batch size of the traced step. A prime: only sizes with a batch dimension are divisible by it."""


@dataclass(frozen=True)
class Design:
    """How to build a denoiser whose weights need not exist yet.

    backbone: its family. make: builds it, untrained. length: tokens per prompt; None: the family's default.
    pipeline: class of its pipeline, where the family has several.
    """

    backbone: str
    make: Callable[[], nn.Module]
    length: int | None = None
    pipeline: str | None = None

    @property
    def kind(self) -> Any:
        """Class of the backbone adapter."""
        return family(self.backbone).of(self.pipeline)


@dataclass(frozen=True)
class Kind:
    """Settings that the trace of a training step depends on, apart from the number of samples.

    accumulates: whether the step has several micro-batches, so that gradients are allocated from its
    beginning. checkpointed: whether activations are recomputed (gradient checkpointing).
    """

    optimizer: str
    lora: LoraSettings | None = None
    checkpointed: bool = False
    accumulates: bool = False


@dataclass(frozen=True, eq=False)
class Trace:
    """Numbers of weights, bytes of the optimizer's state, and live bytes during the step; see `peak`.

    rounded: frozen weights under an adapter that are stored in half precision where autocast is on.

    fixed, per_row: bytes live after each operation, without weights and optimizer state: those that do not
    depend on the batch size, and those per sample. Empty where the network's conditions are unknown.
    kept: the same two numbers after the forward pass: what is live while the loss of its output is computed.
    operations: floating-point operations per sample, forward and backward.
    """

    parameters: int
    trained: int
    rounded: int
    optimizer: int
    fixed: np.ndarray
    per_row: np.ndarray
    kept: tuple[int, int]
    operations: int | None

    def peak(self, rows: int) -> int | None:
        """Peak of live bytes in a step of `rows` samples, without weights and optimizer state."""
        return int((self.fixed + rows * self.per_row).max()) if len(self.fixed) else None

    def live_after_forward(self, rows: int) -> int:
        """Live bytes after the forward pass of `rows` samples, without weights and optimizer state."""
        fixed, per_row = self.kept
        return fixed + rows * per_row

    def backward_excess(self, rows: int) -> int:
        """Bytes of `rows` samples that the backward pass needs at most beside what the forward pass left."""
        return rows * max(int(self.per_row.max()) - self.kept[1], 0)


@cache
def on_meta(design: Design) -> Any:
    """The denoiser on the meta device, where weights take no memory."""
    with torch.device("meta"):
        return design.make()


@cache
def parameters(design: Design) -> int:
    """Number of weights of the denoiser."""
    return sum(weight.numel() for weight in on_meta(design).parameters())


@cache
def adapter_parameters(design: Design, lora: LoraSettings) -> int:
    """Number of weights of an adapter of the denoiser. Raises UserError on a target without a layer."""
    with torch.device("meta"):
        net = design.make()
        attach(net, lora, design.kind.lora_targets, 0)
    return sum(weight.numel() for weight in net.parameters() if weight.requires_grad)


@cache
def trace(design: Design, kind: Kind) -> Trace:
    """Build the denoiser without weights and train it for one step on ROWS samples."""
    with torch.device("meta"):
        net = design.make()
        if kind.lora is not None:
            attach(net, kind.lora, design.kind.lora_targets, 0)
    trained = [weight for weight in net.parameters() if weight.requires_grad]
    # On meta tensors, which are faster: an optimizer allocates the same on every device.
    optimizers = optimizers_for(net, kind.optimizer)
    adamw = [optimizer for optimizer in optimizers if isinstance(optimizer, torch.optim.AdamW)]
    others = [optimizer for optimizer in optimizers if optimizer not in adamw]
    update(trained, others)
    with LiveBytes(ROWS) as live:
        update(trained, others)
    weights = sum(weight.numel() for weight in trained)
    gradients = sum(weight.numel() * weight.itemsize for weight in trained)
    # Fused AdamW keeps two averages, needs no temporary buffers and does not accept meta tensors.
    state = sum(2 * w.numel() * w.itemsize for each in adamw for w in each.param_groups[0]["params"])
    state = state + optimizer_bytes(others) if optimizers else 2 * weights
    rounded = sum(weight.numel() for weight in rounded_by_autocast(net) if not weight.requires_grad)
    counts = (sum(weight.numel() for weight in net.parameters()), weights, rounded, state)
    with FakeTensorMode():
        # `to_empty` would read the meta tensors. A network built of fake tensors could not be moved by PEFT.
        traced = passes(design, kind, on_device(net))
    if traced is None:
        return Trace(*counts, np.empty(0), np.empty(0), (0, 0), None)
    fixed, batches = np.array(traced.history + live.history, dtype=np.int64).T
    before = gradients if kind.accumulates else 0
    fixed[: len(traced.history)] += before
    kept = (traced.kept[0] + before, traced.kept[1] // ROWS)
    return Trace(*counts, fixed, batches // ROWS, kept, traced.operations // ROWS)


def on_device(net: M) -> M:
    """A network of meta tensors, with uninitialized tensors on the device in their place."""
    net._apply(lambda tensor: torch.empty(tensor.shape, dtype=tensor.dtype, device=device()))  # type: ignore[no-untyped-call]
    return net


def optimizers_for(net: nn.Module, optimizer: str) -> list[torch.optim.Optimizer]:
    """The optimizers of a training.

    Empty for `adamw_8bit`: its kernels do not accept meta tensors and need no temporary buffers.
    """
    if optimizer == "adamw_8bit":
        return []
    training = TrainingConfig(steps=1, batch_size=1, learning_rate=1e-3, optimizer=optimizer)
    return optimizers_of(trained_weights({"net": net}), training)


def update(trained: list[nn.Parameter], optimizers: list[torch.optim.Optimizer]) -> None:
    """What follows the backward pass, with zero gradients: clipping, optimizer step, freeing gradients."""
    for weight in trained:
        weight.grad = torch.zeros_like(weight)
    clip_grad_norm_(trained, 1.0)
    for optimizer in optimizers:
        optimizer.step()
    for weight in trained:
        weight.grad = None


def optimizer_bytes(optimizers: list[torch.optim.Optimizer]) -> int:
    """Bytes of the optimizers' states, without step counts, which are one number per weight tensor."""
    slots = [value for each in optimizers for state in each.state.values() for value in state.values()]
    return sum(value.numel() * value.itemsize for value in slots if isinstance(value, Tensor) and value.ndim)


@cache
def forward_peak(design: Design) -> tuple[int, int] | None:
    """Most bytes live in an evaluation without gradient: those that do not depend on the batch, per sample.

    Weights are not rounded: autocast casts them. None where the network's conditions are unknown.
    """
    backbone = design.kind({}, RectifiedFlow(), Prediction.FLOW)
    with torch.device("meta"):
        net: Any = design.make().eval()
    with FakeTensorMode():
        on_device(net)
        example: Conditions | None = backbone.example_conditions(net, ROWS, design.length)
        if example is None:
            return None
        conditions = {name: value.to(device()) for name, value in example.items()}
        side = net.config.sample_size
        x = torch.zeros(ROWS, net.config.in_channels, side, side, device=device())
        time = torch.ones(ROWS, device=device())
        with LiveBytes(ROWS) as live, torch.no_grad(), autocast():
            live.ignore(net.parameters())
            backbone.network(net)(x, time, conditions)
    fixed, batches = max(live.history, key=sum)
    return fixed, batches // ROWS


def passes(design: Design, kind: Kind, net: Any) -> LiveBytes | None:
    """Trace forward and backward pass of ROWS samples; None where the network's conditions are unknown."""
    # Only used to call the network, which does not depend on the schedule.
    backbone = design.kind({}, RectifiedFlow(), Prediction.FLOW)
    example: Conditions | None = backbone.example_conditions(net, ROWS, design.length)
    if example is None:
        return None
    conditions = {name: value.to(device()) for name, value in example.items()}
    if kind.checkpointed:
        recompute(net)
    for weight in net.train().parameters():
        there = kind.accumulates and weight.requires_grad
        weight.grad = torch.zeros_like(weight) if there else None
    side = net.config.sample_size
    x = torch.zeros(ROWS, net.config.in_channels, side, side, device=device())
    time = torch.ones(ROWS, device=device())
    with LiveBytes(ROWS) as live:
        with autocast():
            loss = backbone.network(net)(x, time, conditions).float().square().mean()
        live.mark()
        with attention():
            loss.backward()
    return live


def recompute(net: Any) -> None:
    """Enable gradient checkpointing, in place, where the network has it.

    diffusers' own function saves the random generator's state, which is not a fake tensor.
    """
    if can_recompute(net):
        net.enable_gradient_checkpointing(partial(checkpoint, use_reentrant=False, preserve_rng_state=False))
