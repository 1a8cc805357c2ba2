"""Device, precision, memory layout and batch sizes: settings of the machine, never of params.yaml.

`accelerate config` and ACCELERATE_MIXED_PRECISION decide where they are set. The default is the GPU if there
is one, and bfloat16 if it is faster. docs/machine.md lists the switches FEWSTEP_*.
"""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import TypeVar

import torch
from accelerate import PartialState
from accelerate.utils import parse_flag_from_env
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from fewstep.core.compiling import compile_blocks
from fewstep.core.errors import UserError
from fewstep.core.heap import use_huge_pages
from fewstep.core.precision import bfloat16_pays
from fewstep.core.switches import count_of, is_on, switch

use_huge_pages()

M = TypeVar("M", bound=nn.Module)
T = TypeVar("T")
DTYPES = {"no": None, "bf16": torch.bfloat16, "fp16": torch.float16}
"""Precisions by accelerate's names; None: float32."""


def process() -> PartialState:
    """accelerate's state of this process: rank, world size, device. The first call joins the process group.

    `cpu` must be set for a run on CPUs: otherwise each rank sees a world size of 1.
    """
    return PartialState(cpu=parse_flag_from_env("ACCELERATE_USE_CPU") or not torch.accelerator.is_available())


def device() -> torch.device:
    """The device of this process."""
    local = torch.device(process().device)
    # With several processes the device is named "cpu:0", which safetensors refuses.
    return torch.device("cpu") if local.type == "cpu" else local


def seed_generator(seed: int) -> None:
    """Seed torch's global generators.

    `torch.manual_seed` also notes the call, with its traceback, for every accelerator that is not there: 1 to
    2 ms of each step.
    """
    if device().type == "cpu":
        torch.default_generator.manual_seed(seed)
    else:
        torch.manual_seed(seed)


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
    """Choose the attention kernel, also where activations are recomputed in the backward pass.

    On CPUs the fused kernel is faster without gradients (by a third on the default chain's U-Net), but many
    times slower in a bfloat16 backward pass. With gradients, CPUs therefore use the unfused kernel.
    """
    unfused = device().type == "cpu" and torch.is_grad_enabled()
    with sdpa_kernel(SDPBackend.MATH) if unfused else nullcontext():
        yield


@contextmanager
def full_precision(wanted: bool = True) -> Iterator[None]:
    """Float32 inside `autocast()` if `wanted`: for networks whose activations overflow or lose precision."""
    with torch.autocast(device().type, enabled=False) if wanted else nullcontext():
        yield


def deterministic() -> None:
    """Use deterministic kernels: on one machine the same inputs give the same bytes."""
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True, warn_only=True)
    # The call above also fills every new tensor, which only matters for reads of uninitialised memory.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    torch.backends.cudnn.benchmark = False


def to_device(net: M) -> M:
    """Move a network to the device, in place; FEWSTEP_CHANNELS_LAST and FEWSTEP_COMPILE apply."""
    net = net.to(device())
    if is_on("CHANNELS_LAST"):
        net = net.to(memory_format=torch.channels_last)
    if backend := switch("COMPILE", ""):
        compile_blocks(net, backend)
    return net


def upload(tensor: Tensor, where: torch.device | None = None) -> Tensor:
    """A tensor on a device, by default this process's. A host does not wait for the copy to a GPU.

    Such a copy needs pinned memory, which torch keeps until the copy is complete.
    """
    there = where or device()
    if there.type != "cuda" or tensor.device.type != "cpu":
        return tensor.to(there)
    return tensor.pin_memory().to(there, non_blocking=True)


def checkpointed(net: M) -> M:
    """Enable gradient checkpointing, in place, if FEWSTEP_CHECKPOINT_ACTIVATIONS is set.

    Networks without it are left as they are. Frozen networks have it, too: losses of features, scores and
    decoded images pass gradients through them.
    """
    if is_on("CHECKPOINT_ACTIVATIONS") and can_recompute(net):
        net.enable_gradient_checkpointing()  # type: ignore[operator]
    return net


def can_recompute(net: nn.Module) -> bool:
    """Whether the network has gradient checkpointing; Sana's autoencoder, `AutoencoderDC`, has none."""
    refuses = getattr(net, "_supports_gradient_checkpointing", None) is False
    return hasattr(net, "enable_gradient_checkpointing") and not refuses


def as_saved(net: M) -> M:
    """Undo `to_device` and `checkpointed`, except for the device, so that the network can be saved."""
    disable = getattr(net, "disable_gradient_checkpointing", None)
    if disable is not None:
        disable()
    return net.to(memory_format=torch.contiguous_format)


def images_at_once() -> int:
    """Number of images that are drawn, encoded or evaluated in one batch: FEWSTEP_BATCH."""
    return count_of("BATCH", 256)


def micro_batches(rows: Sequence[T]) -> Iterator[Sequence[T]]:
    """A process's rows of one step, in micro-batches of at most FEWSTEP_MICRO_BATCH rows.

    Their gradients are accumulated.
    """
    return in_parts(rows, count_of("MICRO_BATCH", len(rows)))


def in_parts(things: Sequence[T], size: int) -> Iterator[Sequence[T]]:
    """Slices of at most `size`."""
    return (things[i : i + size] for i in range(0, len(things), size))
