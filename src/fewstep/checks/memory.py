"""How much memory and computing a training of a denoiser takes, known before the denoiser is there.

A step is traced on fake tensors (checks/tracing.py). Not counted: what kernels allocate for themselves, the
allocator's losses, text encoders, and of a perceptual loss the decoder and the feature network.
"""

import math
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch

from fewstep.checks.tracing import Design as Design
from fewstep.checks.tracing import Kind, trace
from fewstep.config.training import TrainingConfig
from fewstep.core.hardware import autocast, device
from fewstep.core.switches import count_of, is_on
from fewstep.training.half import half
from fewstep.training.lora import LoraSettings

FLOAT = 4
"""Bytes of a weight, gradient or average."""
SIDE = 4096
"""Of the matrices by which a device's speed is found."""
SUGGESTED = LoraSettings(rank=64, alpha=64.0)


@dataclass(frozen=True)
class Setup:
    """How a denoiser is trained, as far as memory depends on it.

    rows: samples that are differentiated through at once. ema: whether an average is kept on the device.
    start: whether there is a model that it starts from, which stays in memory unless `lora` shares its
    weights. checkpointed: whether activations are recomputed. accumulates: whether a step has several
    micro-batches.
    """

    rows: int
    optimizer: str
    ema: bool
    start: bool
    lora: LoraSettings | None = None
    checkpointed: bool = False
    accumulates: bool = False

    @property
    def kind(self) -> Kind:
        """What the course of its step depends on."""
        return Kind(self.optimizer, self.lora, self.checkpointed, self.accumulates)


class Need(NamedTuple):
    """What a training takes. parameters: of the network. state, step: in bytes.

    state: what stays between steps: weights, optimizer state, average and the start. step: the most that is
    live beside it: activations, gradients and temporary buffers; None where it is unknown.
    """

    parameters: int
    state: int
    step: int | None

    @property
    def total(self) -> int:
        """Bytes known."""
        return self.state + (self.step or 0)


def setup_of(training: TrainingConfig, lora: LoraSettings | None, start: bool) -> Setup:
    """A training as params and the machine's switches have it. Raises UserError on a senseless switch."""
    rows = min(count_of("MICRO_BATCH", training.batch_size), training.batch_size)
    return Setup(
        rows=rows,
        optimizer=training.optimizer,
        ema=training.ema is not None and not (is_on("EMA_ON_HOST") and device().type != "cpu"),
        start=start,
        lora=lora,
        checkpointed=is_on("CHECKPOINT_ACTIVATIONS"),
        accumulates=rows < training.batch_size,
    )


def need(design: Design, setup: Setup) -> Need:
    """What the training takes in one process."""
    traced = trace(design, setup.kind)
    copies = setup.start and setup.lora is None
    state = FLOAT * (traced.parameters * (1 + copies) + setup.ema * traced.trained) + traced.optimizer
    if (dtype := half()) is not None:
        state -= (FLOAT - dtype.itemsize) * traced.rounded
    frozen = traced.parameters - traced.trained
    return Need(traced.parameters if setup.lora is None else frozen, state, traced.peak(setup.rows))


def advice(design: Design, setup: Setup, memory: int) -> str | None:
    """What makes a training fit into `memory` bytes, the mildest first; None where it fits as it is."""
    if need(design, setup).total <= memory:
        return None
    said: list[str] = []
    for words, changes in changes_of(setup):
        setup, said = replace(setup, **changes), [*said, *words]
        for rows in (setup.rows, *powers_below(setup.rows)):
            smaller = rows < setup.rows
            total = need(design, replace(setup, rows=rows, accumulates=setup.accumulates or smaller)).total
            if total <= memory:
                micro = [f"FEWSTEP_MICRO_BATCH={rows}"] if smaller else []
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
    """Floating-point operations of a training on so many samples: forward and backward passes."""
    each = trace(design, setup.kind).operations
    return None if each is None else samples * each


def speed(seconds: float = 0.5) -> float:
    """Operations per second that this device reaches in its best case: large products of matrices."""
    a = torch.rand(SIDE, SIDE, device=device())
    best, end = math.inf, time.monotonic() + seconds
    with autocast():
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
