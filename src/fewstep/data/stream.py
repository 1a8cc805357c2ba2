"""The order in which every training reads its data, as a function of a key and a position.

Position p is sample p mod N of epoch p // N. Each epoch permutes the shards, and inside each shard its rows.
So a step reads few shards, and a resumed training computes its position, on any number of processes.
"""

from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Generic, Protocol, TypeVar

import numpy as np

from fewstep.core.keyed import Key

T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)
KEPT = 2  # a batch of consecutive positions rarely spans more shards


class ShardRows(Protocol[T_co]):
    """The rows of a shard. A list, or an object that reads a row when it is asked for it."""

    def __getitem__(self, row: int, /) -> T_co: ...


class Stream(Generic[T]):
    """An endless, seekable sequence of rows that lie in shards.

    counts: the number of rows of each shard.
    load: shard number -> its rows, of which those of the last KEPT shards are kept.
    key: of the permutations.
    """

    def __init__(self, counts: Sequence[int], load: Callable[[int], ShardRows[T]], key: Key) -> None:
        """Raises ValueError when there is no row at all."""
        self.total = sum(counts)
        if self.total == 0:
            raise ValueError("a stream needs at least one row")
        self._counts = np.asarray(counts, np.int64)
        self._key = key
        self._load = lru_cache(KEPT)(load)
        self._shard_order = lru_cache(KEPT)(self._permute_shards)
        self._row_order = lru_cache(KEPT)(self._permute_rows)

    def rows(self, positions: Sequence[int]) -> list[T]:
        """The rows at `positions`, which are >= 0; the result does not depend on how they are batched."""
        return [self._row(int(position)) for position in positions]

    def _row(self, position: int) -> T:
        assert position >= 0, position
        epoch, place = divmod(position, self.total)
        order, ends = self._shard_order(epoch)
        turn = int(np.searchsorted(ends, place, side="right"))
        shard = int(order[turn])
        place -= int(ends[turn] - self._counts[shard])
        row = int(self._row_order(epoch, shard)[place])
        return self._load(shard)[row]

    def _permute_shards(self, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        """The shards in the epoch's order, and the place in the epoch where each one ends."""
        key = Key(self._key.seed, f"{self._key.stream}/shards")
        order = key.permutation(epoch, len(self._counts))
        return order, np.cumsum(self._counts[order])

    def _permute_rows(self, epoch: int, shard: int) -> np.ndarray:
        """The shard's rows in the epoch's order."""
        key = Key(self._key.seed, f"{self._key.stream}/rows")
        return key.permutation(epoch * len(self._counts) + shard, int(self._counts[shard]))
