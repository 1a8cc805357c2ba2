"""How much memory and computing a training of a denoiser takes, known before the denoiser is there.

The network is built of fake tensors: on the device and in the precision of a training, with shapes and types
but no numbers. One forward pass then shows what autograd keeps for the backward pass. What is not counted:
passing values of the backward pass, the allocator's losses, text encoders, and of a perceptual loss the
decoder and the feature network. Operations are counted in the same pass.
"""

import math
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cache
from typing import Any, NamedTuple

import torch
from torch import Tensor, UntypedStorage, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd.graph import saved_tensors_hooks
from torch.utils.flop_counter import FlopCounterMode

from fewstep.backbones.base import family
from fewstep.config.base import count_of, is_on
from fewstep.config.training import TrainingConfig
from fewstep.diffusion.denoiser import Prediction
from fewstep.diffusion.schedules import RectifiedFlow
from fewstep.hardware import computing, device
from fewstep.objectives.lora import LoraSettings, attach
from fewstep.training.muon import is_hidden

FLOAT = 4
"""Bytes of a weight, gradient or average."""
SIDE = 4096
"""Of the matrices by which a device's speed is found."""
SUGGESTED = LoraSettings(rank=64, alpha=64.0)

Storages = dict[int, UntypedStorage]


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
class Setup:
    """How a denoiser is trained, as far as memory depends on it.

    rows: samples that are differentiated through at once. ema: whether an average is kept. start: whether
    there is a model that it starts from, which stays in memory unless `lora` shares its weights.
    checkpointed: whether activations are recomputed.
    """

    rows: int
    optimizer: str
    ema: bool
    start: bool
    lora: LoraSettings | None = None
    checkpointed: bool = False


class Need(NamedTuple):
    """What a training takes. parameters: of the network. state, activations: in bytes.

    state: weights, gradients, optimiser, average and the start. activations: None where they are unknown.
    """

    parameters: int
    state: int
    activations: int | None

    @property
    def total(self) -> int:
        """Bytes known."""
        return self.state + (self.activations or 0)


class Traced(NamedTuple):
    """Numbers of weights (all; trained; of these, Muon's), bytes saved (once; per sample), operations per
    sample."""

    parameters: int
    trained: int
    hidden: int
    once: int | None = None
    each: int | None = None
    operations: int | None = None


def setup_of(training: TrainingConfig, lora: LoraSettings | None, start: bool) -> Setup:
    """A training as params and the machine's switches have it. Raises UserError on a senseless switch."""
    return Setup(
        rows=min(count_of("MICRO_BATCH", training.batch_size), training.batch_size),
        optimizer=training.optimizer,
        ema=training.ema is not None,
        start=start,
        lora=lora,
        checkpointed=is_on("CHECKPOINT_ACTIVATIONS"),
    )


def need(design: Design, setup: Setup) -> Need:
    """What the training takes in one process."""
    whole, traced = trace(design, None, False), trace(design, setup.lora, setup.checkpointed)
    copies = setup.start and setup.lora is None
    state = FLOAT * (traced.parameters + traced.trained) + optimizer_bytes(traced, setup.optimizer)
    state += FLOAT * (setup.ema * traced.trained + copies * whole.parameters)
    known = traced.once is not None and traced.each is not None
    activations = traced.once + setup.rows * traced.each if known else None  # type: ignore[operator]
    return Need(whole.parameters, state, activations)


def optimizer_bytes(traced: Traced, optimizer: str) -> int:
    """AdamW has two averages per weight, in float32 or 8 bits; Muon has one for hidden weights."""
    if optimizer == "adamw_8bit":
        return 2 * traced.trained
    hidden = traced.hidden if optimizer == "muon" else 0
    return FLOAT * (2 * (traced.trained - hidden) + hidden)


def advice(design: Design, setup: Setup, memory: int) -> str | None:
    """What makes a training fit into `memory` bytes, the mildest first; None where it fits as it is."""
    if need(design, setup).total <= memory:
        return None
    said: list[str] = []
    for words, changes in changes_of(setup):
        setup, said = replace(setup, **changes), [*said, *words]
        for rows in (setup.rows, *powers_below(setup.rows)):
            total = need(design, replace(setup, rows=rows)).total
            if total <= memory:
                micro = [f"FEWSTEP_MICRO_BATCH={rows}"] if rows < setup.rows else []
                return f"{' '.join([*micro, *said])}: {total / 1e9:.1f} GB"
    return f"nothing makes it fit; {' '.join(['FEWSTEP_MICRO_BATCH=1', *said])}: {total / 1e9:.1f} GB"


def changes_of(setup: Setup) -> Iterator[tuple[list[str], dict[str, Any]]]:
    """What may be switched on, one after the other: how it is written, and what it changes."""
    yield [], {}
    if not setup.checkpointed:
        yield ["FEWSTEP_CHECKPOINT_ACTIVATIONS=1"], {"checkpointed": True}
    if setup.start and setup.lora is None:
        rank, alpha = SUGGESTED.rank, SUGGESTED.alpha
        yield [f"`lora: {{rank: {rank}, alpha: {alpha:g}}}`"], {"lora": SUGGESTED}
    if setup.optimizer != "adamw_8bit":
        yield ["`optimizer: adamw_8bit`"], {"optimizer": "adamw_8bit"}


def powers_below(n: int) -> list[int]:
    """Powers of two smaller than n, the largest first."""
    return [1 << k for k in reversed(range((n - 1).bit_length()))]


def operations(design: Design, setup: Setup, samples: int) -> int | None:
    """Floating-point operations of a training on so many samples, its start's own not counted.

    A forward pass, one backward for the activations and one for the trained weights, and with recomputed
    activations another forward pass.
    """
    traced = trace(design, setup.lora, False)
    if traced.operations is None:
        return None
    passes = 2 + traced.trained / traced.parameters + setup.checkpointed
    return round(samples * passes * traced.operations)


def speed(seconds: float = 0.5) -> float:
    """Operations per second that this device reaches in its best case: large products of matrices."""
    a = torch.rand(SIDE, SIDE, device=device())
    best, end = math.inf, time.monotonic() + seconds
    with computing():
        while best == math.inf or time.monotonic() < end:
            begun = time.monotonic()
            (a @ a)[0, 0].item()
            best = min(best, time.monotonic() - begun)
    return 2 * SIDE**3 / best


def available() -> int:
    """Bytes of the device that trains: the GPU's own memory, else the machine's."""
    if device().type == "cuda":
        return torch.cuda.mem_get_info(device())[1]
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


@cache
def trace(design: Design, lora: LoraSettings | None, checkpointed: bool) -> Traced:
    """Build the denoiser of fake tensors and send two batches through it."""
    with torch.device("meta"):
        net = design.make()
        if lora is not None:
            attach(net, lora, design.kind.lora_targets, 0)
    with FakeTensorMode(), device():
        # Not `to_empty`, which reads the meta tensors; built fake, PEFT could not move them.
        net._apply(lambda tensor: torch.empty(tensor.shape, dtype=tensor.dtype))  # type: ignore[no-untyped-call]
        trained = {f"net/{name}": w for name, w in net.named_parameters() if w.requires_grad}
        counts = (
            sum(weight.numel() for weight in net.parameters()),
            sum(weight.numel() for weight in trained.values()),
            sum(weight.numel() for name, weight in trained.items() if is_hidden(name, weight)),
        )
        few, more = (forward_pass(design, net, rows, checkpointed) for rows in (2, 3))
    if few is None or more is None:
        return Traced(*counts)
    # Not 1 and 2: a batch of one is contiguous in ways that others are not.
    return Traced(*counts, 3 * few[0] - 2 * more[0], more[0] - few[0], more[1] - few[1])


def forward_pass(design: Design, net: Any, rows: int, checkpointed: bool) -> tuple[int, int] | None:
    """Bytes that a forward pass of `rows` samples saves, and its operations; None: conditions unknown."""
    # Only asked how its network is called, which depends on no schedule.
    backbone = design.kind({}, RectifiedFlow(), Prediction.FLOW)
    conditions = backbone.example_conditions(net, rows, design.length)
    if conditions is None:
        return None
    side = net.config.sample_size
    x, time = torch.zeros(rows, net.config.in_channels, side, side), torch.ones(rows)

    def forward() -> Tensor:
        with computing():
            return backbone.network(net)(x, time, conditions)

    with FlopCounterMode(display=False) as counter:
        saved = saved_bytes(net, forward, checkpointed)
    return saved, counter.get_total_flops()


def saved_bytes(net: Any, forward: Callable[[], Tensor], checkpointed: bool = False) -> int:
    """Bytes that autograd saves in `forward`, apart from the network's own weights and buffers.

    checkpointed: of every block only its inputs, and all of the block that is largest when recomputed.
    """
    own = {storage(tensor)[0] for tensor in (*net.parameters(), *net.buffers())}
    largest = 0
    with saving() as saved:

        def recomputed(block: nn.Module, *inputs: Any) -> Any:
            nonlocal largest
            saved.update(storage(value) for value in inputs if isinstance(value, Tensor))
            with saving() as inside:
                outputs = block(*inputs)
            largest = max(largest, size(inside, own | saved.keys()))
            return outputs

        if checkpointed:
            net.enable_gradient_checkpointing(recomputed)
        result = forward()
    if checkpointed:
        net.disable_gradient_checkpointing()
    del result
    return size(saved, own) + largest


@contextmanager
def saving() -> Iterator[Storages]:
    """The distinct storages that autograd saves inside."""
    found: Storages = {}

    def pack(tensor: Tensor) -> Tensor:
        found.update([storage(tensor)])
        return tensor

    with saved_tensors_hooks(pack, lambda tensor: tensor):
        yield found


def storage(tensor: Tensor) -> tuple[int, UntypedStorage]:
    """A tensor's storage by its identity; views share it, and fake ones have no address."""
    found = tensor.untyped_storage()
    return found._cdata, found


def size(storages: Storages, apart: Any) -> int:
    """Bytes of the storages whose keys are not in `apart`."""
    return sum(found.nbytes() for key, found in storages.items() if key not in apart)
