"""This device's roofline for a computation (Williams et al. 2009): how fast it could be at best, op by op.

An op takes at least its floating-point operations over the rate of a large matrix product of its dtype, and
at least the bytes of its inputs and outputs over the rate of a large copy. The sum over all ops is a bound
for code that fuses none of them. Ops whose data stay in the cache can be below it.
"""

import time
from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from fewstep.checks.stopwatch import synchronize
from fewstep.core.hardware import device

SIDE, BYTES, ROUNDS = 2048, 2**28, 5


def fastest(run: Callable[[], object]) -> float:
    """Seconds of the fastest of some runs, after a warm-up."""
    seconds = []
    for _ in range(1 + ROUNDS):
        synchronize()
        begun = time.perf_counter()
        run()
        synchronize()
        seconds.append(time.perf_counter() - begun)
    return min(seconds[1:])


@cache
def operations_per_second(dtype: torch.dtype) -> float:
    """Rate of a matrix product of this dtype."""
    a = torch.randn(SIDE, SIDE, device=device()).to(dtype)
    return 2 * SIDE**3 / fastest(lambda: a @ a)


@cache
def bytes_per_second() -> float:
    """Rate of a copy, reading and writing."""
    source = torch.zeros(BYTES, dtype=torch.uint8, device=device())
    target = torch.empty_like(source)
    return 2 * BYTES / fastest(lambda: target.copy_(source))


class Roofline(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Adds up, while it is active, the least `seconds` of all ops, and of them those that matrix ops take."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.seconds = self.matrix_seconds = 0.0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        inputs = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        outputs = [leaf for leaf in tree_leaves(result) if isinstance(leaf, Tensor)]
        tensors = {id(tensor): tensor for tensor in inputs + outputs}.values()
        if outputs and not func.is_view:
            self.count(func, args, kwargs or {}, result, sum(tensor.nbytes for tensor in tensors))
        return result

    def count(self, func: Any, args: Any, kwargs: Any, result: Any, moved: int) -> None:
        """Add an op that moves so many bytes."""
        seconds = moved / bytes_per_second()
        if (operations := flop_registry.get(func._overloadpacket)) is not None:
            dtype = next(leaf.dtype for leaf in tree_leaves(args) if isinstance(leaf, Tensor))
            flops = operations(*args, **kwargs, out_val=result)
            seconds = max(seconds, flops / operations_per_second(dtype))
            self.matrix_seconds += seconds
        self.seconds += seconds
