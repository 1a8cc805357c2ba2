"""Sampling settings of a model: solver, guidance and times. Its manifest holds them; samplers read them."""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Self

from fewstep.diffusion.solvers import Solver, trailing


class Guidance(StrEnum):
    """Where classifier-free guidance comes from."""

    SCALE = "scale"
    """Two evaluations a step, combined at the scale of `sampling.guidance`."""
    CONDITION = "condition"
    """An input of the network: one evaluation a step, at the scale of `sampling.guidance`."""
    BUILT_IN = "built_in"
    """Distilled into the weights."""


@dataclass(frozen=True)
class Sampling:
    """Solver, guidance and times of a model.

    solver, times: both None for a teacher, which is sampled with the solver of `sampling` in params, at its
    family's own times. times: step count that the model was made for -> its `steps + 1` times from 1 to 0;
    at step counts without an entry, times are equally spaced.
    """

    solver: Solver | None
    guidance: Guidance
    times: Mapping[int, tuple[float, ...]] | None

    @property
    def follows_params(self) -> bool:
        """Whether solver and times are the user's choice."""
        return self.solver is None

    @property
    def metadata(self) -> dict[str, Any]:
        """The settings as plain values, for a manifest."""
        times = None if self.times is None else {str(n): list(grid) for n, grid in sorted(self.times.items())}
        return {"solver": self.solver, "guidance": self.guidance, "times": times}

    @classmethod
    def from_metadata(cls, metadata: Mapping[str, Any]) -> Self:
        """The inverse of `metadata`."""
        times = metadata["times"]
        return cls(
            solver=None if metadata["solver"] is None else Solver(metadata["solver"]),
            guidance=Guidance(metadata["guidance"]),
            times=None if times is None else {int(n): tuple(grid) for n, grid in times.items()},
        )

    def grid(self, steps: int) -> list[float]:
        """`steps + 1` times from 1 to 0 of a model whose `times` are not None."""
        assert self.times is not None
        return list(self.times.get(steps, trailing(steps)))


TEACHERS = Sampling(None, Guidance.SCALE, None)
"""Sampling settings of a teacher."""
STUDENTS = Sampling(Solver.DDIM, Guidance.BUILT_IN, {})
"""Sampling settings of a student, unless its method sets others."""
