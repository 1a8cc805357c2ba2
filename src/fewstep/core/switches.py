"""Settings of the machine, FEWSTEP_*: where and how to run. docs/machine.md lists them."""

import math
import os

from fewstep.core.errors import UserError


def switch(name: str, default: str) -> str:
    """A setting of *where and how* to run: environment variable `FEWSTEP_<NAME>`.

    Such settings change no result and therefore are not in params.yaml.
    """
    return os.environ.get(f"FEWSTEP_{name}", default)


def is_on(name: str) -> bool:
    """Whether the switch is set, and not to 0."""
    return switch(name, "") not in ("", "0")


def count_of(name: str, default: int) -> int:
    """A switch that is a whole number, 1 or more. Raises UserError on any other value."""
    value = switch(name, "") or str(default)
    if not value.isdecimal() or int(value) < 1:
        raise UserError(f"FEWSTEP_{name}={value}: expected a number, 1 or more")
    return int(value)


def number_of(name: str, default: float, least: float = 0, most: float = math.inf) -> float:
    """A switch that is a number from `least` to `most`, not infinite. Raises UserError on any other value."""
    text = switch(name, "") or str(default)
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not (math.isfinite(value) and least <= value <= most):
        limits = f"{least:g} or more" if math.isinf(most) else f"from {least:g} to {most:g}"
        raise UserError(f"FEWSTEP_{name}={text}: expected a number, {limits}")
    return value
