"""Random numbers as a function of a key.

All random numbers of the project are drawn here. The value for `(seed, stream, index)` depends neither on
the batch size, the process or the order of the calls, nor on where a run was resumed. The generator is the
counter-based Philox-4x64 (Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3"), whose bit
stream NumPy guarantees to keep.
"""

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Key:
    """A family of random streams. seed: of the run. stream: name of what is drawn."""

    seed: int
    stream: str

    def generator(self, index: int) -> np.random.Generator:
        """The generator of one sample or step; `index` in [0, 2^64)."""
        digest = hashlib.sha256(f"{self.seed}/{self.stream}".encode()).digest()
        key = int.from_bytes(digest[:8], "little") | (int(index) << 64)
        return np.random.Generator(np.random.Philox(key=key))

    def normal(self, indices: Iterable[int], shape: Sequence[int]) -> np.ndarray:
        """Standard normal draws, float32 `[len(indices), *shape]`, row i from `indices[i]` alone."""
        rows = [self.generator(i).standard_normal(tuple(shape), dtype=np.float32) for i in indices]
        return np.stack(rows) if rows else np.empty((0, *shape), np.float32)

    def uniform(self, indices: Iterable[int], count: int = 1) -> np.ndarray:
        """Uniform draws in [0, 1), float64 `[len(indices), count]`, row i from `indices[i]` alone."""
        rows = [self.generator(i).random(count) for i in indices]
        return np.stack(rows) if rows else np.empty((0, count))

    def stratified(self, positions: Sequence[int], batch_size: int) -> np.ndarray:
        """Uniform draws in [0, 1), float64 `[len(positions)]`, spread evenly over each batch.

        Position p is row p mod batch_size of step p // batch_size. The rows of a step are an even grid with
        one random shift, which lowers the variance of an average over the batch.
        """
        places = np.asarray(positions)
        shifts = {step: self.generator(step).random() for step in np.unique(places // batch_size)}
        shift = np.array([shifts[step] for step in places // batch_size])
        return ((places % batch_size) / batch_size + shift) % 1.0

    def permutation(self, index: int, length: int) -> np.ndarray:
        """A permutation of `range(length)`, int64 `[length]`; `index` is, for example, the epoch."""
        return self.generator(index).permutation(length)

    def seed32(self, index: int) -> int:
        """A seed below 2^32 for another library's generator (for example, dropout in a network)."""
        return int(self.generator(index).integers(2**32))
