"""For all tests: their order, and what pytest does once in each of its processes."""

import gc

import pytest

from fewstep.core.garbage import collect_rarely
from tests import began  # noqa: F401 (before anything that sets variables)

FIRST = (
    "test_flows",
    "test_stable_diffusion",
    "test_chain",
    "test_cluster",
    "test_several_processes",
    "test_distributed",
    "test_every_method",
    "test_score_methods",
    "test_backbones",
    "test_inputs_teachers",
    "test_bad_input",
    "test_own_model",
    "test_server",
    "test_export",
)
"""The longest begin first, so that no process of pytest-xdist is left alone with one at the end.

The first waits for the miniature chain; the second does not need it, so that two processes work meanwhile.
"""


def pytest_configure() -> None:
    """The unit tests take 5 % less CPU time."""
    collect_rarely()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Sort files by `FIRST`; those that it does not name keep their order."""

    def place(item: pytest.Item) -> int:
        return FIRST.index(item.path.stem) if item.path.stem in FIRST else len(FIRST)

    items.sort(key=place)


def pytest_collection_finish() -> None:
    """Keep the million objects of imported libraries out of garbage collection.

    A full collection takes half a second with them. Each import of a teacher collects twice.
    """
    gc.collect()
    gc.freeze()


def pytest_unconfigure() -> None:
    """Let the interpreter clear up as usual."""
    gc.unfreeze()
