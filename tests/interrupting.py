"""A training that is interrupted and goes on."""

from collections.abc import Callable
from typing import Any, TypeVar
from unittest.mock import patch

import pytest

T = TypeVar("T")
STOPPED_AT = 2
"""The step before which the training is interrupted."""


def interrupted_and_resumed(method: Any, training: Callable[[], T]) -> T:
    """Call `training` twice: it is interrupted, then it goes on from that step, not from the first.

    method: the class of `fewstep.training.method.Method` that trains. Returns what the second call returns.
    """
    batch, steps = method.batch, []

    def interrupt(self: Any, rows: Any) -> Any:
        if rows.step == STOPPED_AT:
            raise KeyboardInterrupt
        return batch(self, rows)

    def record(self: Any, rows: Any) -> Any:
        steps.append(rows.step)
        return batch(self, rows)

    with patch.object(method, "batch", interrupt), pytest.raises(KeyboardInterrupt):
        training()
    with patch.object(method, "batch", record):
        made = training()
    assert steps[0] == STOPPED_AT, "it began anew"
    return made
