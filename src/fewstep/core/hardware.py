"""Where, how fast and in how much memory. Chosen by the machine, never by params.yaml.

`accelerate config` or ACCELERATE_MIXED_PRECISION decides where set. Otherwise: the GPU where there is one,
and bfloat16 where that is faster. The switches FEWSTEP_* are told in docs/machine.md.
"""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import TypeVar

import torch
from accelerate import PartialState
from accelerate.utils import parse_flag_from_env
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from fewstep.core.errors import UserError
from fewstep.core.precision import bfloat16_pays
from fewstep.core.switches import count_of, is_on, switch

# Read at the first allocation: of huge pages, an autoencoder's activations cost a sixth less time on CPUs.
os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")

M = TypeVar("M", bound=nn.Module)
T = TypeVar("T")
DTYPES = {"no": None, "bf16": torch.bfloat16, "fp16": torch.float16}
"""Precisions by accelerate's names; None: float32."""


def process() -> PartialState:
    """This process among those that run the stage; the first call joins them.

    accelerate has to know of CPUs: otherwise each rank sees a world size of 1.
    """
    return PartialState(cpu=parse_flag_from_env("ACCELERATE_USE_CPU") or not torch.accelerator.is_available())


def device() -> torch.device:
    """The device of this process."""
    found = torch.device(process().device)
    # Several processes' "cpu:0" is a name that safetensors refuses.
    return torch.device("cpu") if found.type == "cpu" else found


def mixed_precision() -> str:
    """ "no", "bf16" or "fp16", as accelerate names them."""
    chosen = os.environ.get("ACCELERATE_MIXED_PRECISION")
    if chosen:
        if chosen not in DTYPES:
            raise UserError(f"ACCELERATE_MIXED_PRECISION={chosen}: expected one of {', '.join(DTYPES)}")
        return chosen
    if device().type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "no"
    return "bf16" if bfloat16_pays() else "no"


@contextmanager
def autocast() -> Iterator[None]:
    """Autocast to `mixed_precision()`, with `attention()`."""
    dtype = DTYPES[mixed_precision()]
    with torch.autocast(device().type, dtype) if dtype else nullcontext(), attention():
        yield


@contextmanager
def attention() -> Iterator[None]:
    """The kernel of attention, also where activations are recomputed in the backward pass.

    On CPUs the fused one is faster without gradients, a third on the default chain's U-Net, and many times
    slower in a bfloat16 backward pass, which takes the unfused one.
    """
    unfused = device().type == "cpu" and torch.is_grad_enabled()
    with sdpa_kernel(SDPBackend.MATH) if unfused else nullcontext():
        yield


@contextmanager
def full_precision(wanted: bool = True) -> Iterator[None]:
    """Float32 inside `autocast()`, where `wanted`: for networks whose activations overflow or coarsen."""
    with torch.autocast(device().type, enabled=False) if wanted else nullcontext():
        yield


def deterministic() -> None:
    """Same inputs, same bytes: on one machine every kernel gives one answer."""
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True, warn_only=True)
    # The above also fills every new tensor, for programs that read what they have not written.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    torch.backends.cudnn.benchmark = False


def to_device(net: M) -> M:
    """A network on the device, in place; laid out and compiled as FEWSTEP_CHANNELS_LAST, _COMPILE say."""
    net = net.to(device())
    if is_on("CHANNELS_LAST"):
        net = net.to(memory_format=torch.channels_last)
    if backend := switch("COMPILE", ""):
        net.compile(backend=backend)
    return net


def checkpointed(net: M) -> M:
    """A network with gradient checkpointing on, where FEWSTEP_CHECKPOINT_ACTIVATIONS is set."""
    enable = getattr(net, "enable_gradient_checkpointing", None)
    if enable is not None and is_on("CHECKPOINT_ACTIVATIONS"):
        enable()
    return net


def as_saved(net: M) -> M:
    """Undo `to_device` and `checkpointed`, except for the device: a network as it is saved."""
    disable = getattr(net, "disable_gradient_checkpointing", None)
    if disable is not None:
        disable()
    return net.to(memory_format=torch.contiguous_format)


def images_at_once() -> int:
    """How many are drawn, encoded or evaluated together: FEWSTEP_BATCH."""
    return count_of("BATCH", 256)


def micro_batches(rows: Sequence[T]) -> Iterator[Sequence[T]]:
    """A process's rows of one step in parts of at most FEWSTEP_MICRO_BATCH, whose gradients are added up."""
    return in_parts(rows, count_of("MICRO_BATCH", len(rows)))


def in_parts(things: Sequence[T], size: int) -> Iterator[Sequence[T]]:
    """Slices of at most `size`."""
    return (things[i : i + size] for i in range(0, len(things), size))
