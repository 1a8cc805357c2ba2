"""Estimates the memory and compute of a denoiser's training before the denoiser exists.

A step is traced on fake tensors (checks/tracing.py), a loss that decodes images as well (checks/decoding.py).
Not counted: memory that kernels allocate internally, the allocator's fragmentation, text encoders, the
weights of discriminators, evaluations and previews.
"""

import math
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch

from fewstep.checks.decoding import Decoding, trace_decoding
from fewstep.checks.tracing import Design as Design
from fewstep.checks.tracing import Kind, Trace, on_meta, parameters, trace
from fewstep.config.training import TrainingConfig
from fewstep.core.hardware import autocast, device
from fewstep.core.switches import count_of, is_on
from fewstep.students.config import MethodConfig
from fewstep.training.half import half, rounded_by_autocast
from fewstep.training.lora import LoraSettings

FLOAT = 4
"""Bytes of a weight, gradient or average."""
SIDE = 4096
"""Side of the matrices that are multiplied to measure a device's speed."""
SUGGESTED = LoraSettings(rank=64, alpha=64.0)


@dataclass(frozen=True)
class Setup:
    """Settings of a denoiser's training that its memory depends on.

    rows: samples per backward pass. ema: whether an average of the weights is kept on the device. start:
    whether there is a start model, which stays in memory unless `lora` shares its weights. checkpointed:
    whether activations are recomputed (gradient checkpointing). accumulates: whether a step has several
    micro-batches.
    """

    rows: int
    optimizer: str
    ema: bool
    start: bool
    lora: LoraSettings | None = None
    checkpointed: bool = False
    accumulates: bool = False
    ema_on_host: bool = False
    """Whether the average is kept in host memory instead."""
    further: tuple[str, ...] = ()
    """Optimizers of further trained networks of the teacher's size."""
    averages: int = 0
    """Moving averages of the trained weights that the method evaluates."""
    gradient_passes: int = 1
    """Evaluations per sample whose activations are kept for one backward pass."""
    allows_lora: bool = True
    """Whether an adapter could be trained instead."""
    teacher: bool = False
    """Whether the teacher is in memory beside another start model."""
    evaluates_start: bool = False
    """Whether the start model is evaluated, so that its weights are rounded as training/half.py does."""
    full_precision: bool = False
    """Whether the network under an adapter is not rounded."""
    decoding: Decoding | None = None
    """The part of the loss that decodes images; None: there is none, or its networks are unknown."""

    @property
    def kind(self) -> Kind:
        """Settings that the trace of its step depends on."""
        return Kind(self.optimizer, self.lora, self.checkpointed, self.accumulates)


def student_setup(config: MethodConfig) -> Setup:
    """Setup of a student's training. Raises UserError on an invalid switch."""
    return replace(
        setup_of(config.training, config.lora, True),
        further=tuple(each.optimizer for each in config.further_networks),
        averages=config.averages,
        allows_lora=config.allows_lora,
        gradient_passes=config.gradient_passes,
        teacher=bool(config.further_networks) and config.from_ != "teacher",
        evaluates_start=config.evaluates_start,
        full_precision=config.full_precision,
    )


class Need(NamedTuple):
    """What a training needs. parameters: number of the network's weights. state, step, copy: bytes.

    state: what stays between steps: weights, optimizer state, average, the start model and the networks of a
    loss of decoded images. step: peak of what is live beside it: activations, gradients, temporary buffers;
    None where it is unknown. copy: of the state that is saved in the background, on a CPU; 0 where the
    machine's memory has no room for it.
    """

    parameters: int
    state: int
    step: int | None
    copy: int = 0

    @property
    def total(self) -> int:
        """Bytes in all without the copy, as far as they are known: what a training cannot do without."""
        return self.state + (self.step or 0)

    @property
    def total_while_saving(self) -> int:
        """Bytes in all while a state is written."""
        return self.total + self.copy


def setup_of(training: TrainingConfig, lora: LoraSettings | None, start: bool) -> Setup:
    """A training's setup, by its params and the machine's switches. Raises UserError on an invalid switch."""
    rows = min(count_of("MICRO_BATCH", training.batch_size), training.batch_size)
    averaged, on_host = training.ema is not None, is_on("EMA_ON_HOST") and device().type != "cpu"
    return Setup(
        rows=rows,
        optimizer=training.optimizer,
        ema=averaged and not on_host,
        ema_on_host=averaged and on_host,
        start=start,
        lora=lora,
        checkpointed=is_on("CHECKPOINT_ACTIVATIONS"),
        accumulates=rows < training.batch_size,
    )


def need(design: Design, setup: Setup, start: Design | None = None, teacher: Design | None = None) -> Need:
    """Memory that the training of `design` needs in one process.

    start, teacher: networks of its start model and of the chain's teacher; None: of the same size.
    """
    start, teacher = start or design, teacher or design
    traced = trace(design, setup.kind)
    averages = setup.ema + setup.averages
    state = FLOAT * (traced.parameters + averages * traced.trained) + traced.optimizer
    copy = FLOAT * (1 + averages) * traced.trained + traced.optimizer
    if setup.start and setup.lora is None:
        state += frozen_bytes(start) if setup.evaluates_start else FLOAT * parameters(start)
    for optimizer in setup.further:
        other = trace(teacher, replace(setup, optimizer=optimizer).kind)
        state += FLOAT * other.trained + other.optimizer
        copy += FLOAT * other.trained + other.optimizer
    if (dtype := half()) is not None and not setup.full_precision:
        state -= (FLOAT - dtype.itemsize) * traced.rounded
    state += setup.teacher * frozen_bytes(teacher)
    if setup.decoding is not None:
        state += trace_decoding(setup.decoding, design, setup.checkpointed).weights
    return copied(Need(parameters(design), state, step_of(design, setup, traced), copy))


def copied(needed: Need) -> Need:
    """The same without the copy of a saved state on a GPU, and where memory has no room for it."""
    copies = device().type == "cpu" and needed.total_while_saving <= available()
    return needed if copies else needed._replace(copy=0)


def step_of(design: Design, setup: Setup, traced: Trace) -> int | None:
    """Peak of live bytes in a step, beside the state; None where it is unknown.

    Networks and images that a loss evaluates on the student's output have their backward pass while the
    student's activations are live. Their graph is freed before the student's own backward pass.
    """
    own, rows = traced.peak(setup.rows), setup.rows
    if own is None:
        return None
    kept, beside = traced.live_after_forward(rows * setup.gradient_passes), 0
    if setup.gradient_passes > 1:
        beside = traced.backward_excess(rows)
    if setup.decoding is not None:
        beside = max(beside, trace_decoding(setup.decoding, design, setup.checkpointed).peak(rows))
    return max(own, kept + beside)


def frozen_bytes(design: Design) -> int:
    """Bytes of the weights of a network that is evaluated but not trained."""
    dtype, size = half(), FLOAT * parameters(design)
    if dtype is None:
        return size
    return size - (FLOAT - dtype.itemsize) * sum(w.numel() for w in rounded_by_autocast(on_meta(design)))


def advice(
    design: Design,
    setup: Setup,
    memory: int,
    start: Design | None = None,
    teacher: Design | None = None,
) -> str | None:
    """The mildest changes that make a training fit into `memory` bytes; None where it fits as it is.

    start, teacher: see `need`.
    """
    if need(design, setup, start, teacher).total <= memory:
        return None
    advised: list[str] = []
    for words, changes in changes_of(setup):
        setup, advised = replace(setup, **changes), [*advised, *words]
        for rows in (setup.rows, *powers_below(setup.rows)):
            smaller = rows < setup.rows
            changed = replace(setup, rows=rows, accumulates=setup.accumulates or smaller)
            total = need(design, changed, start, teacher).total
            if total <= memory:
                micro = [f"FEWSTEP_MICRO_BATCH={rows}"] if smaller else []
                return f"{' '.join([*micro, *advised])}: {total / 1e9:.1f} GB"
    return f"nothing makes it fit; {' '.join(['FEWSTEP_MICRO_BATCH=1', *advised])}: {total / 1e9:.1f} GB"


def changes_of(setup: Setup) -> Iterator[tuple[list[str], dict[str, Any]]]:
    """Changes to apply in turn: (how a user writes them, the fields of Setup that they change)."""
    yield [], {}
    if not setup.checkpointed:
        yield ["FEWSTEP_CHECKPOINT_ACTIVATIONS=1"], {"checkpointed": True}
    if setup.start and setup.lora is None and setup.allows_lora:
        rank, alpha = SUGGESTED.rank, SUGGESTED.alpha
        yield [f"`lora: {{rank: {rank}, alpha: {alpha:g}}}`"], {"lora": SUGGESTED}
    if setup.optimizer != "adamw_8bit":
        yield ["`optimizer: adamw_8bit`"], {"optimizer": "adamw_8bit"}


def powers_below(n: int) -> list[int]:
    """Powers of two smaller than n, the largest first."""
    return [1 << k for k in reversed(range((n - 1).bit_length()))]


def operations(design: Design, setup: Setup, samples: int) -> int | None:
    """Floating-point operations of a training on `samples` samples: forward and backward passes."""
    each = trace(design, setup.kind).operations
    return None if each is None else samples * each


def speed(seconds: float = 0.5) -> float:
    """Operations per second that this device reaches in the best case, large matrix products."""
    a = torch.rand(SIDE, SIDE, device=device())
    best, end = math.inf, time.monotonic() + seconds
    with autocast():
        while best == math.inf or time.monotonic() < end:
            begun = time.monotonic()
            (a @ a)[0, 0].item()
            best = min(best, time.monotonic() - begun)
    return 2 * SIDE**3 / best


def available() -> int:
    """Total memory of the training device in bytes: the GPU's own, else the machine's."""
    if device().type == "cuda":
        return torch.cuda.mem_get_info(device())[1]
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
