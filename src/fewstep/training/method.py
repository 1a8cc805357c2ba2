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
    process; a weight is whole only within such a call.
    decays: name -> decay of further moving averages of these weights, for the method's own use.
    averages: name -> networks by module name, their weights averaged, in evaluation mode, without gradient
    on their weights. The loop makes and updates them; they share every frozen weight with `modules`.
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

    step: 0-based. positions: the samples' places in the endless keyed order, `step * batch_size + row`;
    everything random about a sample is keyed by its position.
    """

    step: int
    positions: Sequence[int]


class Method(ABC):
    """A training method: of the classifier, the autoencoder, the teacher, reflow, a distillation ...

    One step runs `batch`, then `prepare` once without gradient. Then each group of `schedule`, in order, has
    its turn: `losses`, backward, optimizer step. In a turn gradients reach the weights of that group alone:
    the weights of the others are constants, through which gradients pass to their inputs.

    A method holds no state but its networks. Whatever differs between steps is a function of `rows` and
    `step`.
    """

    training: TrainingConfig
    """Length and batch size."""
    groups: Mapping[str, Group]
    frozen: Sequence[nn.Module] = ()
    """Networks that are not trained; the loop puts them on the device, in evaluation mode."""

    def schedule(self, step: int) -> Sequence[str]:
        """The groups that are updated at `step`, in order. Default: all of them."""
        return tuple(self.groups)

    @abstractmethod
    def batch(self, rows: Rows) -> Any:
        """The samples of `rows`, on the device."""

    def prepare(self, batch: Any) -> Any:
        """What the groups share in this step (a teacher's solution, say), made without gradient."""
        return batch

    @abstractmethod
    def losses(self, group: str, batch: Any, step: int) -> dict[str, Tensor]:
        """Named scalar terms, means over the batch's rows; `group` minimises their sum."""

    limits: Mapping[str, float] = {}
    """Measure of `evaluate` -> size beyond which it counts as drift and is warned of."""

    def evaluate(self) -> dict[str, float]:
        """Measures on fixed samples, with the weights that would be kept now; empty: none."""
        return {}

    def preview(self) -> Tensor | None:
        """A small fixed set of images `[N, 3, H, W]` in [-1, 1] for the tracker; None: none."""
        return None
