"""Losses against their formulas, written out anew in tests/formulas; and mutations that must each be noticed.

The expected values come from numpy and the papers' equations alone. Randomness is drawn from the keys that a
method documents: `times`, `step`, `noise` ... of the model to be made.
"""

from importlib import import_module
from pkgutil import iter_modules
from types import ModuleType
from typing import Any

import pytest

from tests import formulas

FORMULAS: dict[str, Any] = {
    each.name: import_module(f"tests.formulas.{each.name}")
    for each in iter_modules(formulas.__path__)
    if not each.name.startswith("common")
}


@pytest.fixture(autouse=True)
def full_precision(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "no")


def mutated(module: ModuleType, line: str, other: str) -> ModuleType:
    """The module with one expression replaced."""
    assert module.__file__ is not None
    with open(module.__file__) as file:  # noqa: PTH123
        source = file.read()
    assert source.count(line) == 1, f"{line!r} is there {source.count(line)} times; write the mutation anew"
    made = ModuleType(module.__name__)
    exec(compile(source.replace(line, other), module.__file__, "exec"), made.__dict__)
    return made


@pytest.mark.parametrize("name", FORMULAS)
def test_losses_are_the_papers(name: str) -> None:
    FORMULAS[name].check(FORMULAS[name].MODULE)


@pytest.mark.parametrize(
    ("name", "line", "other"),
    [(name, *mutation) for name, formula in FORMULAS.items() for mutation in formula.MUTATIONS],
    ids=[f"{name}-{i}" for name, formula in FORMULAS.items() for i in range(len(formula.MUTATIONS))],
)
def test_a_mutation_is_noticed(name: str, line: str, other: str) -> None:
    broken = mutated(FORMULAS[name].MODULE, line, other)
    with pytest.raises(AssertionError):
        FORMULAS[name].check(broken)
