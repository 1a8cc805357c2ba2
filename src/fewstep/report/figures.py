"""Formatting of figures on the page; a figure that was not measured is a dash."""

import math
from collections.abc import Callable
from typing import NamedTuple

from fewstep.evaluation.plain_text import digits
from fewstep.evaluation.record import Interval, Ratio

DASH = "–"
SPACE = "\N{NO-BREAK SPACE}"
MINUS = "\N{MINUS SIGN}"


class Written(NamedTuple):
    """A figure and, in small letters below it, its interval."""

    text: str
    small: str = ""


def percent(share: float | None) -> str:
    """A share in [0, 1]: "97.3 %"."""
    return DASH if share is None else f"{100 * share:.1f}{SPACE}%"


def signed_percent(change: float) -> str:
    """A relative change: "+3.1 %"."""
    return f"{100 * change:+.1f}{SPACE}%".replace("-", MINUS)


def figure(value: float | None) -> str:
    """Three significant digits, or all before the point: "0.0123", "1.08", "1,240"."""
    if value is None:
        return DASH
    return f"{value:,.0f}" if abs(value) >= 99.95 else f"{value:#.3g}"


def probability(value: float | None) -> str:
    """A p-value: "0.42", "< 0.001"."""
    if value is None:
        return DASH
    return f"<{SPACE}0.001" if value < 0.001 else f"{value:.2g}"


def interval(measured: Interval | None, write: Callable[[float], str] | None = None) -> Written:
    """A figure with its interval, rounded to the interval's precision, or formatted by `write`."""
    if measured is None:
        return Written(DASH)
    ends = measured.value, measured.low, measured.high
    value, low, high = map(write, ends) if write else (text.replace("-", MINUS) for text in digits(measured))
    return Written(value, f"{low} {DASH} {high}")


def ratio(measured: Ratio | None) -> Written:
    """A ratio with its interval: "1.08 ×"; without an upper end, only the lower end."""
    if measured is None:
        return Written(DASH)
    if measured.high is None or measured.value is None:
        return Written(f"≥{SPACE}{times(measured.low)}" if measured.low > 0 else DASH, "no upper end")
    if measured.low == measured.high:
        return Written(times(measured.value))
    value, low, high = digits(Interval(value=measured.value, low=measured.low, high=measured.high))
    return Written(f"{value}{SPACE}×", f"{low} {DASH} {high}")


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
