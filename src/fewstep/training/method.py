"""Interface between a training method and the loop."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from fewstep.config.training import OptimizerConfig, TrainingConfig

KEPT = "ema"
"""Name of the average of `OptimizerConfig.ema`; at the end of a training it becomes the weights."""


@dataclass
class Group:
    """Networks with one optimizer: a student, a fake score, a discriminator ...

    modules: name -> network. The trained weights are those with `requires_grad` when training begins. Under
    FSDP, call a network as a whole, an autoencoder also by `encode` and `decode`, equally often in every
    process; a weight is gathered only during such a call.
    decays: name -> decay of further moving averages of these weights, for the method's own use.
    averages: name -> networks by module name with averaged weights, in evaluation mode, without gradients on
    their weights. The loop makes and updates them; they share every frozen weight with `modules`.
    """

    modules: dict[str, nn.Module]
    optimizer: OptimizerConfig
    decays: Mapping[str, float] = field(default_factory=dict)
    averages: dict[str, dict[str, nn.Module]] = field(default_factory=dict, init=False)

    def __post_init__(self) -> None:
        if KEPT in self.decays:
            raise ValueError(f"decays: {KEPT!r} is the average of `optimizer.ema`; choose another name")


@dataclass(frozen=True)
class Rows:
    """This process's part of a step's batch.

    step: 0-based. positions: the samples' indices in the endless keyed order, `step * batch_size + row`;
    everything random about a sample is keyed by its position.
    """

    step: int
    positions: Sequence[int]


class Method(ABC):
    """A training method: of the classifier, the autoencoder, the teacher, reflow, a distillation ...

    One step runs `batch`, then `prepare` once without gradient. Then each group of `schedule` is updated, in
    order: `losses`, backward, optimizer step. During the update only the weights of that group receive
    gradients. Those of the other groups are constants: gradients pass through their networks to the inputs.

    A method holds no state but its networks. Whatever differs between steps is a function of `rows` and
    `step`.
    """

    training: TrainingConfig
    """Length and batch size."""
    groups: Mapping[str, Group]
    frozen: Sequence[nn.Module] = ()
    """Networks that are not trained; the loop puts them on the device, in evaluation mode."""
    full_precision: bool = False
    """Whether trained networks are evaluated without autocast, so that none of their weights is rounded."""

    def schedule(self, step: int) -> Sequence[str]:
        """The groups that are updated at `step`, in order. Default: all of them."""
        return tuple(self.groups)

    @abstractmethod
    def batch(self, rows: Rows) -> Any:
        """The samples of `rows`, on the device.

        Called in a thread, without gradient and autocast, while earlier steps run. So it reads no weights,
        calls no network and draws nothing from torch's own generator. `upload` copies to a GPU without
        waiting for it.
        """

    def prepare(self, batch: Any) -> Any:
        """Compute without gradient what the groups share in this step, such as the teacher's solution."""
        return batch

    @abstractmethod
    def losses(self, group: str, batch: Any, step: int) -> dict[str, Tensor]:
        """Named scalar terms, means over the batch's rows; `group` minimises their sum."""

    def updated(self, group: str) -> None:  # noqa: B027
        """Called without gradient after each update of a group: for a rule on weights, such as clipping."""

    limits: Mapping[str, float] = {}
    """Measure of `evaluate` -> absolute value beyond which a warning of drift is printed."""

    def evaluate(self) -> dict[str, float]:
        """Measures on fixed samples, with the weights that would be kept now; empty: none."""
        return {}

    def preview(self) -> Tensor | None:
        """A small fixed set of images `[N, 3, H, W]` in [-1, 1] for the tracker; None: none."""
        return None
