"""What a thing that learns must say about itself. Everything else is the loop's."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from fewstep.config.training import TrainingConfig


@dataclass
class Player:
    """Networks that one optimiser trains together (a generator, a critic, ...).

    modules: name -> network, called through this mapping. Where networks lie in shards a method calls them as
    `forward`, an autoencoder also as `encode` and `decode`, and in every process equally often; a weight is
    whole only within such a call.
    """

    modules: dict[str, nn.Module]
    training: TrainingConfig


@dataclass(frozen=True)
class Rows:
    """This process's part of a step's batch.

    step: 0-based. positions: the samples' places in the endless keyed order, `step * batch_size + row`;
    everything random about a sample is keyed by its position.
    """

    step: int
    positions: Sequence[int]


class Method(ABC):
    """Something that learns: the judge, the VAE, the teacher, reflow, a distillation method ...

    A step runs `batch`, then `prepare` once, then for each player whose turn it is `losses`, backward and
    an optimiser step. Methods hold no state of their own but their networks: all that may differ
    between steps is a function of `rows`.
    """

    players: Mapping[str, Player]
    frozen: Sequence[nn.Module] = ()

    def turns(self, step: int) -> Sequence[str]:
        """The players whose optimisers step at `step`, in order. Default: all of them."""
        return tuple(self.players)

    @abstractmethod
    def batch(self, rows: Rows) -> Any:
        """The samples of `rows`, on the device."""

    def prepare(self, batch: Any) -> Any:
        """What the players share in this step (a teacher's solution, say), made without gradient."""
        return batch

    @abstractmethod
    def losses(self, player: str, batch: Any) -> dict[str, Tensor]:
        """Named scalar terms, means over the batch's rows; their sum is minimised by `player`."""

    def preview(self) -> Tensor | None:
        """A small fixed set of pictures `[N, 3, H, W]` in [-1, 1] for the tracker; None: none."""
        return None
