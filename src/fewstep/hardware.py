"""Where and how fast: device and precision. Chosen by the machine, never by params.yaml.

`accelerate config` or ACCELERATE_MIXED_PRECISION decides where set. Otherwise: the GPU where there is one,
and bfloat16 where the hardware multiplies it natively.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

import torch
from accelerate import PartialState
from accelerate.utils import parse_flag_from_env
from torch.nn.attention import SDPBackend, sdpa_kernel


def process() -> PartialState:
    """This process among those that run the stage; the first call joins them.

    accelerate must be told of CPUs: started in several processes without, each would think itself alone.
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
        return chosen
    if device().type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "no"
    return "bf16" if torch.cpu._is_amx_tile_supported() else "no"


@contextmanager
def computing(precision: str | None = None) -> Iterator[None]:
    """Autocast to `precision` (default: `mixed_precision()`) with deterministic kernels.

    On CPUs attention takes the plain kernel: the fused one is many times slower in a bfloat16 backward pass.
    """
    kind, precision = device().type, precision or mixed_precision()
    dtype = {"no": None, "bf16": torch.bfloat16, "fp16": torch.float16}[precision]
    with (
        torch.autocast(kind, dtype) if dtype else nullcontext(),
        sdpa_kernel(SDPBackend.MATH) if kind == "cpu" else nullcontext(),
    ):
        yield


@contextmanager
def exactly(wanted: bool = True) -> Iterator[None]:
    """Float32 inside `computing()`, where `wanted`: for networks whose activations overflow or coarsen."""
    with torch.autocast(device().type, enabled=False) if wanted else nullcontext():
        yield


def deterministic() -> None:
    """Same inputs, same bytes: on one machine every kernel gives one answer."""
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.backends.cudnn.benchmark = False
