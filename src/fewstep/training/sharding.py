"""FSDP-sharded networks of a group: each process has rows of every weight, gradient, average and momentum.

This uses torch's FSDP2 (Zhao et al. 2023, "PyTorch FSDP"; `fully_shard`). A block's weights are gathered when
it runs and freed after it; its gradients are summed over processes during the backward pass. A sharded tensor
is a DTensor. All functions here leave other tensors unchanged, so training code need not distinguish them.
"""

import os
import sys
from collections.abc import Callable, Iterator, Mapping
from copy import deepcopy
from typing import TYPE_CHECKING, TypeGuard, TypeVar

import torch
from accelerate.utils import parse_flag_from_env
from torch import Tensor, nn
from torch.distributed import all_gather_into_tensor
from torch.utils import swap_tensors

from fewstep.core.errors import UserError
from fewstep.core.hardware import device, process
from fewstep.core.processes import is_main_process

if TYPE_CHECKING:
    from torch.distributed.tensor import DTensor

M = TypeVar("M", bound=nn.Module)
REFUSED = {
    "FEWSTEP_CHANNELS_LAST": "unset it",
    "FSDP_OFFLOAD_PARAMS": "answer no to offloading in `accelerate config`",
    "FSDP_ACTIVATION_CHECKPOINTING": "answer no in `accelerate config`, set FEWSTEP_CHECKPOINT_ACTIVATIONS=1",
    "ACCELERATE_USE_PARALLELISM_CONFIG": "answer no to the parallelism config in `accelerate config`",
}
"""Environment variable that FSDP-sharded networks do not support -> what to do instead."""

COLLECTIVE = 64e6
"""Bytes of the full tensors that one collective gathers; a larger tensor has one of its own."""


def is_wanted() -> bool:
    """Whether accelerate's config enables FSDP, and there is more than one process."""
    return parse_flag_from_env("ACCELERATE_USE_FSDP") and process().num_processes > 1


def shard(net: nn.Module) -> Callable[[], None]:
    """Shard a network over the processes, in place, where `is_wanted`; all processes call this together.

    Weights are gathered one block at a time. Blocks are the modules that the network's class lists in
    `_no_split_modules` (as for accelerate); all weights outside of them form one more. Returns a function
    that turns it into the ordinary network again, in place, with the weights of that moment. Raises UserError
    where an environment variable of `REFUSED` is set.
    """
    if not is_wanted():
        return lambda: None
    # Imported only here: the import takes longer than a short training; most trainings have one process.
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import FSDPModule, fully_shard

    for name, way_out in REFUSED.items():
        if os.environ.get(name, "").lower() not in ("", "0", "false"):
            raise UserError(f"{name} is set, which is not offered for networks in shards (FSDP): {way_out}")
    # The cache would keep a half-precision copy of every block until the pass is over.
    torch.set_autocast_cache_enabled(False)
    ordinary = without_weights(net)
    blocks = getattr(net, "_no_split_modules", None) or ()
    mesh = init_device_mesh(device().type, (process().num_processes,))
    # An autoencoder is not called as a whole, but its encoder and its decoder are.
    roots = [*net.children()] if hasattr(net, "encode") else [net]
    for module in reversed([*net.modules()]):
        if module in roots or type(module).__name__ in blocks:
            # Roots are resharded too; otherwise their parameters would be gathered weights, not shards.
            fully_shard(module, mesh=mesh, reshard_after_forward=True)
            assert isinstance(module, FSDPModule)
            module.set_gradient_divide_factor(1.0)
            module.set_force_sum_reduction_for_comms(True)

    def unshard() -> None:
        weights = {name: full.clone() for name, full in full_tensors(dict(net.named_parameters()))}
        for name, empty in [*ordinary.named_parameters()]:
            swap_tensors(empty, nn.Parameter(weights[name], empty.requires_grad))  # type: ignore[no-untyped-call]
        net.__class__, net.__dict__ = type(ordinary), vars(ordinary)

    return unshard


def unsharded_in_backward(net: nn.Module, layer: str, output: Tensor) -> None:
    """Gather the weights of the modules around a layer when a gradient arrives at the layer's output.

    FSDP gathers a module's weights in the backward pass when the gradient of the module's own output arrives.
    That of a layer inside it may arrive alone. Where the network is not FSDP-sharded, nothing is done.
    """
    library = sys.modules.get("torch.distributed.fsdp")
    if library is None or not output.requires_grad:
        return
    names = layer.split(".")
    around = [net.get_submodule(".".join(names[:i])) for i in range(len(names) + 1)]
    sharded = [module for module in around if isinstance(module, library.FSDPModule)]

    def gather(_: Tensor) -> None:
        for module in sharded:
            module.unshard()

    if sharded:
        output.register_hook(gather)  # type: ignore[no-untyped-call]


def without_weights(net: M) -> M:
    """A copy with its weights on the meta device; its buffers are shared with the network."""
    memo: dict[int, object] = {id(buffer): buffer for buffer in net.buffers()}
    for weight in net.parameters():
        memo[id(weight)] = nn.Parameter(torch.empty_like(weight, device="meta"), weight.requires_grad)
    return deepcopy(net, memo)


def is_sharded(tensor: Tensor) -> "TypeGuard[DTensor]":
    """Whether each process holds a part of the tensor."""
    # Where the library was never imported, there is no DTensor.
    library = sys.modules.get("torch.distributed.tensor")
    return library is not None and isinstance(tensor, library.DTensor)


def full_tensor(tensor: Tensor) -> Tensor:
    """The full tensor, in every process; all processes call this together."""
    if not is_sharded(tensor):
        return tensor
    here = tensor.to(device())
    assert is_sharded(here)
    return here.full_tensor()


@torch.no_grad()
def host_copies(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A copy of each full tensor in host memory, contiguous; all processes call this together.

    Empty in all processes but the main one.
    """
    copies: dict[str, Tensor] = {}
    for name, full in full_tensors(tensors):
        if is_main_process():
            copies[name] = full.to("cpu", copy=True).contiguous()
    return copies


@torch.no_grad()
def full_tensors(tensors: Mapping[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
    """Name and full tensor, on the device where it was sharded; all processes call this together.

    Many tensors share a collective: of small ones, each would take longer than its copy.
    """
    sharded = {name: tensor for name, tensor in tensors.items() if is_sharded(tensor)}
    yield from ((name, tensor.detach()) for name, tensor in tensors.items() if name not in sharded)
    for names in chunks({name: tensor.numel() * tensor.itemsize for name, tensor in sharded.items()}):
        shards = [padded(sharded[name]) for name in names]
        here = torch.cat(shards)
        everywhere = here.new_empty(process().num_processes * len(here))
        all_gather_into_tensor(everywhere, here)
        of_tensor = torch.split(everywhere.view(-1, len(here)), [len(shard) for shard in shards], dim=1)
        for name, rows in zip(names, of_tensor, strict=True):
            tensor = sharded[name]
            yield name, rows.flatten().view(tensor.dtype).view(-1, *tensor.shape[1:])[: len(tensor)]


def chunks(sizes: Mapping[str, int]) -> Iterator[list[str]]:
    """Names in their order, as many at a time as take at most `COLLECTIVE` bytes, but at least one."""
    names: list[str] = []
    total = 0
    for name, size in sizes.items():
        if names and total + size > COLLECTIVE:
            yield names
            names, total = [], 0
        names.append(name)
        total += size
    if names:
        yield names


def padded(tensor: "DTensor") -> Tensor:
    """This process's rows of a tensor as bytes, on its device, padded to the size of the largest shard.

    The first processes have `ceil(rows / processes)` rows each, as torch.chunk divides them; what is missing
    is missing at the end.
    """
    (placement,) = tensor.placements
    assert placement.is_shard(0), placement
    rows = tensor.to_local().to(device())
    largest = -(-len(tensor) // process().num_processes)
    missing = rows.new_zeros(largest - len(rows), *rows.shape[1:])
    return torch.cat([rows, missing]).flatten().view(torch.uint8)


def reshard(tensor: Tensor, like: Tensor) -> Tensor:
    """The inverse of `full_tensor`: on the device of `like`, and sharded like it where shapes are equal."""
    tensor = tensor.to(like.device)
    if not is_sharded(like) or tensor.shape != like.shape:
        return tensor
    from torch.distributed.tensor import distribute_tensor

    # Cloned, because a slice would keep the full tensor in memory.
    return distribute_tensor(tensor, like.device_mesh, like.placements, src_data_rank=None).clone()


def per_matrix(f: Callable[[Tensor], Tensor], matrices: Tensor) -> Tensor:
    """Apply `f`, which needs full matrices and keeps their shape, to matrices `[k, m, n]`.

    Where each process holds some rows of all matrices, it applies `f` to all rows of some matrices instead.
    """
    if not is_sharded(matrices):
        return f(matrices)
    from torch.distributed.tensor import DTensor, Shard

    some = f(matrices.redistribute(placements=[Shard(0)]).to_local())
    done = DTensor.from_local(
        some, matrices.device_mesh, [Shard(0)], shape=matrices.shape, stride=matrices.stride()
    )
    return done.redistribute(placements=matrices.placements)
