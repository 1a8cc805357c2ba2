"""Training state of a method: everything that a resumed step needs."""

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path

from torch import Tensor

from fewstep.core.hardware import checkpointed, device
from fewstep.training.checkpoint import load_state
from fewstep.training.group_state import GroupState, named, within
from fewstep.training.half import halve_frozen
from fewstep.training.method import Method
from fewstep.training.records import Records
from fewstep.training.sharding import host_copies, shard


class State:
    """Everything a resumed step needs, on this process's device.

    folder: where complete states are saved.
    """

    def __init__(self, method: Method, folder: Path) -> None:
        self.method, self.folder, self.step = method, folder, 0
        self.records = Records(folder)
        # Before the groups: an adapter's base weights are shared with them until each side is FSDP-sharded.
        frozen = [checkpointed(module.requires_grad_(False).eval().to(device())) for module in method.frozen]
        self._unshards = [shard(module) for module in frozen]
        self.groups = {label: GroupState(group) for label, group in method.groups.items()}
        trained = [net for group in method.groups.values() for net in group.modules.values()]
        whole = {id(weight) for net in trained if method.full_precision for weight in net.parameters()}
        networks = (*method.frozen, *trained)
        halve_frozen([net for net in networks if whole.isdisjoint(map(id, net.parameters()))])

    @contextmanager
    def turn(self, label: str) -> Iterator[GroupState]:
        """One group's update: starts without gradients; the weights of the other groups receive none."""
        with ExitStack() as others:
            for other, group in self.groups.items():
                group.forget_gradients()
                if other != label:
                    others.enter_context(group.constant())
            yield self.groups[label]
        for group in self.groups.values():
            group.forget_gradients()

    def tensors(self) -> dict[str, Tensor]:
        """The state by name."""
        tensors: dict[str, Tensor] = {}
        for label, group in self.groups.items():
            tensors |= named(label, group.tensors())
        return tensors

    @property
    def size(self) -> int:
        """Bytes of the saved state; less before the first step, in which optimizers allocate their state."""
        return sum(value.numel() * value.itemsize for value in self.tensors().values())

    def snapshot(self) -> dict[str, Tensor]:
        """A copy of the full state in host memory, contiguous; all processes call this together.

        Empty in all processes but the main one.
        """
        return host_copies(self.tensors())

    def resume(self) -> None:
        """Restore the newest state on disk, if there is one."""
        saved = load_state(self.folder)
        if saved is None:
            return
        self.step, tensors = saved
        for label, group in self.groups.items():
            group.restore(within(label, tensors))
        print(f"{self.folder.name}: resumes at step {self.step}", flush=True)

    @contextmanager
    def kept_weights(self) -> Iterator[None]:
        """Swap in the weights that would be kept now, in every group."""
        with ExitStack() as groups:
            for group in self.groups.values():
                groups.enter_context(group.kept_weights())
            yield

    def finish(self, chosen: Mapping[str, Tensor]) -> None:
        """Leave weights in the modules. chosen: "group/name" -> weight; where it is empty, the final ones."""
        for label, group in self.groups.items():
            group.finish(within(label, chosen))
        for unshard in self._unshards:
            unshard()
