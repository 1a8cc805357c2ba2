"""The bytes of all tensors that are live at once, real or fake, after each operation."""

from collections.abc import Iterable
from typing import Any
from weakref import ref

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry


class LiveBytes(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Tracks every storage that is allocated inside the context until it is freed; views share a storage.

    A storage counts as dependent on the batch size if `rows` divides its number of elements. history:
    (independent bytes, dependent bytes) after each operation. kept: the same at the last call of `mark`.
    operations: floating-point operations so far, counted as in FlopCounterMode; that mode is not used, since
    it keeps tensors alive that gradient checkpointing frees.
    """

    def __init__(self, rows: int) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.rows, self.live, self.operations = rows, [0, 0], 0
        self.history: list[tuple[int, int]] = []
        self.kept = (0, 0)
        # Keyed by identity, since fake storages have no address.
        self.followed: dict[int, ref[Any]] = {}

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        results = func(*args, **kwargs)
        if count := flop_registry.get(func._overloadpacket):
            self.operations += count(*args, **kwargs, out_val=results)
        for value in tree_leaves(results):
            if isinstance(value, Tensor):
                self.follow(value)
        self.history.append((self.live[0], self.live[1]))
        return results

    def mark(self) -> None:
        """Note what is live now, after the forward pass."""
        self.kept = (self.live[0], self.live[1])

    def ignore(self, tensors: Iterable[Tensor]) -> None:
        """Leave out the storages of these tensors, such as weights, which views of them would count."""
        for tensor in tensors:
            self.follow(tensor, counts=False)

    def follow(self, tensor: Tensor, counts: bool = True) -> None:
        """Count a tensor's storage, unless it is counted or ignored already."""
        storage = tensor.untyped_storage()
        key, size = storage._cdata, storage.nbytes() if counts else 0
        if key in self.followed:
            return
        kind = int(size > 0 and (size // tensor.itemsize) % self.rows == 0)

        def freed(_: Any) -> None:
            del self.followed[key]
            self.live[kind] -= size

        self.followed[key] = ref(storage, freed)
        self.live[kind] += size
