"""Figures with their 95 % intervals as plain text, for tables outside the report."""

import math

from fewstep.evaluation.record import Interval, Ratio

UNKNOWN_RATIO = "the teacher's is not told apart from 0"


def digits(interval: Interval) -> tuple[str, str, str]:
    """Value, low and high, with enough decimals to show two digits of the interval's half width.

    "0.0123", "0.0101", "0.0152". Three significant digits where the half width is below a millionth or 0.
    """
    half = (interval.high - interval.low) / 2
    decimals = max(1 - math.floor(math.log10(half)), 0) if half > 0 else math.inf
    style = f",.{decimals}f" if decimals <= 7 else "#.3g"
    value, low, high = (f"{part:{style}}" for part in (interval.value, interval.low, interval.high))
    return value, low, high


def interval_text(interval: Interval | None) -> str:
    """ "0.0123 (0.0101 - 0.0152)"; empty where nothing was measured."""
    if interval is None:
        return ""
    value, low, high = digits(interval)
    return f"{value} ({low} - {high})"


def ratio_text(ratio: Ratio) -> str:
    """ "1.08 x (0.91 - 1.30)"; without an upper end, the lower end or a note."""
    if ratio.high is None or ratio.value is None:
        return f"at least {ratio.low:.3g} x; {UNKNOWN_RATIO}" if ratio.low > 0 else UNKNOWN_RATIO
    if ratio.low == ratio.high:
        return f"{ratio.value:.3g} x"
    value, low, high = digits(Interval(value=ratio.value, low=ratio.low, high=ratio.high))
    return f"{value} x ({low} - {high})"
