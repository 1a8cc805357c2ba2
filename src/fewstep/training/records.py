"""Losses and gradient norms of the last steps, on the device until they are read.

Reading makes the host wait for the device. Between readings, the host prepares the next steps meanwhile.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from fewstep.core.errors import UserError
from fewstep.core.files import write_json
from fewstep.core.processes import is_main_process
from fewstep.training.explosion import ExplosionGuard


@dataclass(frozen=True)
class Update:
    """One group's update. terms: names of the loss terms `values` `[n]`. norm: of the gradients, a scalar.

    overflown: whether gradients overflowed in float16, which changed no weight.
    """

    group: str
    terms: Sequence[str]
    values: Tensor
    norm: Tensor
    rate: float
    overflown: bool


@dataclass(frozen=True)
class Step:
    """The updates of a step, on the batch at these positions of the keyed order."""

    number: int
    positions: range
    updates: Sequence[Update]


@dataclass(frozen=True)
class Values:
    """Values of a step. losses: by group. logged: everything that trackers receive."""

    losses: dict[str, float]
    logged: dict[str, float]

    @property
    def note(self) -> str:
        """The losses in words, beside a progress bar."""
        return "  ".join(f"{label} loss {value:.4g}" for label, value in self.losses.items())


class Records:
    """The steps of a training that have not been read yet. folder: of its states."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.guards: dict[str, ExplosionGuard] = {}
        self.newest = Values({}, {})
        self._unread: list[Step] = []

    def add(self, step: Step) -> None:
        """Add a step. This does not wait for the device."""
        self._unread.append(step)

    def read(self) -> Values:
        """Read and guard all steps since the last call, in order. Returns the newest step's values.

        Raises UserError, with the step and the batch's positions, when a loss or a norm is not finite or has
        exploded. Weights may have been updated since, so a state is saved only after this call.
        """
        steps, self._unread = self._unread, []
        tensors = [tensor for step in steps for each in step.updates for tensor in (each.values, each.norm)]
        if not tensors:
            return self.newest
        numbers = iter(torch.cat([tensor.reshape(-1) for tensor in tensors]).tolist())
        for step in steps:
            self.newest = Values({}, {})
            for each in step.updates:
                terms = dict(zip(each.terms, numbers, strict=False))
                norm, loss = next(numbers), sum(terms.values())
                self._guard(step, f"{each.group} loss", loss)
                if not each.overflown:
                    self._guard(step, f"{each.group} gradient norm", norm)
                terms |= {"loss": loss, "gradient_norm": norm, "learning_rate": each.rate}
                self.newest.losses[each.group] = loss
                self.newest.logged.update({f"{each.group}/{name}": value for name, value in terms.items()})
        return self.newest

    def _guard(self, step: Step, what: str, value: float) -> None:
        """Raises UserError when the value is not finite or has exploded; the last state on disk is good."""
        if self.guards.setdefault(what, ExplosionGuard()).accepts(value):
            return
        record, positions = self.folder / "failed_batch.json", step.positions
        if is_main_process():
            write_json(record, {"step": step.number, "positions": list(positions), what: repr(value)})
        raise UserError(
            f"{self.folder.name}: {what} became {value:.4g} at step {step.number}, on samples "
            f"{positions[0]} to {positions[-1]} of the keyed order (listed in {record}); the last "
            "good state is beside it. Lower learning_rate or look at these samples, then run `dvc repro`"
        )
