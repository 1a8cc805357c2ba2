"""How figures are written on the page; one that was not measured is a dash."""

import math

DASH = "–"
SPACE = "\N{NO-BREAK SPACE}"


def percent(share: float | None) -> str:
    """A share in [0, 1]: "97.3 %"."""
    return DASH if share is None else f"{100 * share:.1f}{SPACE}%"


def figure(value: float | None) -> str:
    """Three significant digits, or all before the point: "0.0123", "1.08", "1,240"."""
    if value is None:
        return DASH
    return f"{value:,.0f}" if abs(value) >= 99.95 else f"{value:#.3g}"


def times(ratio: float | None) -> str:
    """A ratio: "1.08 ×"."""
    return DASH if ratio is None else f"{figure(ratio)}{SPACE}×"


def duration(seconds: float | None) -> str:
    """A time: "12.3 ms", "1.24 s"."""
    if seconds is None:
        return DASH
    return f"{figure(seconds)}{SPACE}s" if seconds >= 1 else f"{figure(1000 * seconds)}{SPACE}ms"


def amount(count: float | None, unit: str = "") -> str:
    """A large count with its SI prefix: "999", "1.24 M", "412 MB"."""
    if count is None:
        return DASH
    power = min(int(math.log10(max(count, 1))) // 3, 5)
    prefix = ("", "k", "M", "G", "T", "P")[power] + unit
    return f"{figure(count / 1000**power)}{SPACE}{prefix}".strip()


def counted(count: int, noun: str) -> str:
    """A count with its noun: "1 step", "4 steps"."""
    return f"{count:,}{SPACE}{noun}{'' if count == 1 else 's'}"
