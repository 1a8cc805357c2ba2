"""Quantities in readable units."""


def duration(seconds: float) -> str:
    """Seconds in a readable unit: 40 s, 14 min, 3.5 h, 12 days."""
    for unit, size, digits in (("s", 1, 0), ("min", 60, 0), ("h", 3600, 1)):
        if seconds < 90 * size:
            return f"{seconds / size:.{digits}f} {unit}"
    return f"{seconds / 86400:.0f} days"
