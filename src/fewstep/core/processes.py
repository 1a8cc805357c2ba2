"""Several processes per stage: barrier, collectives, and each process's share of the work.

Each process has its own rows of a batch, and replicas of the networks unless training/sharding.py shards
them. The replicas' gradients are summed here and not by DistributedDataParallel, for two reasons. It averages
over processes with equal weights, which is wrong where a batch divides unevenly. And it only sees calls of
`forward`, not, for example, those of an autoencoder's `encode`.
"""

from collections.abc import Sequence
from functools import cache
from typing import Any, TypeVar

import torch
from accelerate.utils import DistributedType, broadcast_object_list
from torch import Tensor
from torch.distributed import all_reduce, new_group

from fewstep.core.errors import UserError
from fewstep.core.hardware import process

T = TypeVar("T")
KINDS = {
    DistributedType.NO,
    DistributedType.MULTI_CPU,
    DistributedType.MULTI_GPU,
    DistributedType.MULTI_XPU,
    DistributedType.MULTI_NPU,
    DistributedType.FSDP,
}


def is_main_process() -> bool:
    """Whether this is rank 0, the only process that writes shared files."""
    return bool(process().is_main_process)


def barrier() -> None:
    """Wait until every process has reached this call."""
    process().wait_for_everyone()


def local_slice(things: Sequence[T]) -> Sequence[T]:
    """This process's part; the parts of all processes are disjoint and complete."""
    state = process()
    return things[state.process_index :: state.num_processes]


def require(kind: DistributedType, processes: int, batch_size: int) -> None:
    """Raises UserError where so many processes of this kind cannot train as a single process would."""
    if kind not in KINDS:
        raise UserError(
            f"accelerate's config asks for {kind}, which is not offered: answer no to it in "
            "`accelerate config`, and choose multi-GPU or FSDP"
        )
    if batch_size < processes:
        raise UserError(
            f"batch_size = {batch_size} has no sample for each of {processes} processes; start fewer "
            "(num_processes in `accelerate config`) or raise batch_size"
        )


@torch.no_grad()
def all_reduce_sum(tensors: Sequence[Tensor]) -> None:
    """Replace each tensor, in place, by its sum over processes."""
    if process().num_processes == 1:
        return
    for waiting in [all_reduce(tensor, async_op=True) for tensor in tensors]:
        waiting.wait()


def any_rank(*here: bool) -> list[bool]:
    """For each flag, whether it is true in any process; every process gets the same result.

    Processes wait for each other, but not for their devices.
    """
    if process().num_processes == 1:
        return list(here)
    flags = torch.tensor(here, dtype=torch.float32)
    all_reduce(flags, group=on_hosts())
    return [bool(flag) for flag in flags.tolist()]


def from_main(value: T) -> T:
    """The main process's value, in every process; it is pickled. All processes call this together."""
    if process().num_processes == 1:
        return value
    values = [value]
    broadcast_object_list(values)
    return values[0]


@cache
def on_hosts() -> Any:
    """The group of all processes that sums tensors in host memory; all processes make it together."""
    return new_group(backend="gloo")
