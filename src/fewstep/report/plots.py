"""Quality against cost, as one SVG that follows the page's colours.

Matplotlib writes fixed colours. The colours used here are placeholders, which are replaced by CSS values
afterwards, so that the same drawing fits light and dark pages.
"""

import io
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from fewstep.evaluation.record import Interval

COLOURS = 12
"""How many model colours the page defines, `--c0` ... `--c11`; later models reuse them from the first."""
MARKERS = "osD^v<>ph8d*"
FLOOR = "real images"
"""Name of the floor in the legend."""
INK, MUTED, LINE, PAPER = "#010101", "#020202", "#030303", "#040404"
ID = re.compile(r'(?<= id=")|(?<=href="#)|(?<=url\(#)')
"""Where an id begins in an SVG."""
CSS = {INK: "currentColor", MUTED: "var(--muted)", LINE: "var(--line)", PAPER: "var(--paper)"} | {
    f"#00aa{i:02x}": f"var(--c{i})" for i in range(COLOURS)
}
STYLE: dict[Any, Any] = {
    "font.size": 10.5,
    "svg.fonttype": "none",
    "svg.hashsalt": "fewstep",
    "text.color": INK,
    "text.parse_math": False,
    "axes.edgecolor": LINE,
    "axes.labelcolor": MUTED,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlelocation": "left",
    "axes.grid": True,
    "grid.color": LINE,
    "grid.linewidth": 0.6,
    "xtick.color": LINE,
    "ytick.color": LINE,
    "xtick.labelcolor": MUTED,
    "ytick.labelcolor": MUTED,
}


@dataclass(frozen=True)
class Point:
    """A measured `value` with its interval [`low`, `high`] at `nfe` evaluations of the network."""

    nfe: int
    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Curve:
    """One model's points in one panel; `colour` is its place in the list of models."""

    name: str
    colour: int
    points: tuple[Point, ...]


@dataclass(frozen=True)
class Panel:
    """One plot.

    share: the values are shares in [0, 1], shown in percent; otherwise the axis is logarithmic, and linear
    around 0, since unbiased distances may be negative. floor: the same figure of real images.
    """

    title: str
    share: bool
    curves: tuple[Curve, ...]
    floor: Interval | None = None


def render(panels: Sequence[Panel]) -> str:
    """The panels side by side over one legend, as an `<svg>` element. The same panels give the same bytes."""
    labels = {curve.name for panel in panels for curve in panel.curves}
    labels |= {FLOOR for panel in panels if panel.floor}
    columns = min(6, max(1, 150 // (8 + max(map(len, labels), default=0))))  # as many as fit the width
    height = 4.5 + 0.2 * max(1, math.ceil(len(labels) / columns))
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(11.8, height), layout="constrained")
        names: dict[str, Any] = {}
        for axes, panel in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True):
            names |= fill(axes, panel)
        figure.legend(
            list(names.values()),
            list(names),
            loc="outside lower center",
            ncols=columns,
            frameon=False,
            numpoints=1,
        )
        return svg_of(figure, "cost")


def svg_of(figure: Figure, name: str) -> str:
    """A figure as an `<svg>` element in the page's colours; call it within STYLE.

    name: put before every id, because a page may have several figures.
    """
    written = io.StringIO()
    nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))
    figure.savefig(written, format="svg", transparent=True, metadata=nothing)
    svg = written.getvalue()
    svg = svg[svg.index("<svg") :].strip()
    for placeholder, css in CSS.items():
        svg = svg.replace(placeholder, css)
    return ID.sub(f"{name}-", svg)


def fill(axes: Axes, panel: Panel) -> dict[str, Any]:
    """Draw one panel; returns each curve's legend handle by name."""
    sharing: dict[int, list[str]] = {}
    for curve in panel.curves:
        for point in curve.points:
            sharing.setdefault(point.nfe, []).append(curve.name)

    def apart(curve: Curve, nfe: int) -> float:  # otherwise the last curve would hide the others
        return float(nfe * 1.035 ** (sharing[nfe].index(curve.name) - (len(sharing[nfe]) - 1) / 2))

    if not panel.share:  # before anything is drawn, so that the limits follow from this scale
        axes.set_yscale("symlog", linthresh=near_zero(panel), linscale=0.6)
    handles: dict[str, Any] = {}
    if panel.floor:
        axes.axhspan(panel.floor.low, panel.floor.high, color=MUTED, alpha=0.16, linewidth=0, zorder=1)
        handles[FLOOR] = axes.axhline(panel.floor.value, color=MUTED, linewidth=1.2, linestyle="--", zorder=2)
    for curve in panel.curves:
        colour = f"#00aa{curve.colour % COLOURS:02x}"
        points = sorted(curve.points, key=lambda point: point.nfe)
        handles[curve.name] = axes.errorbar(
            [apart(curve, point.nfe) for point in points],
            [point.value for point in points],
            yerr=[[p.value - p.low for p in points], [p.high - p.value for p in points]],
            color=colour,
            marker=MARKERS[curve.colour % len(MARKERS)],
            markersize=6.5,
            markeredgecolor=PAPER,
            markeredgewidth=0.8,
            linewidth=1.6,
            elinewidth=1.2,
            zorder=3,
        )
    axes.set_xscale("log", base=2)
    axes.set_xticks(sorted(sharing), [str(nfe) for nfe in sorted(sharing)])
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xlabel("evaluations of the network per image")
    axes.set_title(panel.title, fontsize=12, fontweight="bold", pad=12)
    if panel.share:
        axes.yaxis.set_major_formatter(FuncFormatter(lambda share, _: f"{100 * share:g} %"))
    else:
        ticks = ticks_of(near_zero(panel), *axes.get_ylim())
        axes.yaxis.set_major_locator(FixedLocator(ticks))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}".replace("-", "\u2212")))
        axes.yaxis.set_minor_locator(NullLocator())
    return handles


def near_zero(panel: Panel) -> float:
    """Distance below which the axis is linear: the smallest upper interval end, as a power of 10 below it.

    Below it no model's distance is significantly different from 0, and a logarithmic axis would show only
    noise.
    """
    ends = [point.high for curve in panel.curves for point in curve.points if point.high > 0]
    return float(10.0 ** math.floor(math.log10(min(ends, default=1.0))))


def ticks_of(linear_to: float, low: float, high: float) -> list[float]:
    """Ticks from low to high: 0, and 1, 2 and 5 times powers of 10 of both signs; fewer over many decades."""
    decades = max(math.ceil(math.log10(max(abs(low), abs(high), linear_to) / linear_to)), 0)
    digits = (1, 2, 5) if decades < 3 else (1, 3) if decades < 5 else (1,)
    powers = [linear_to * 10**k for k in range(decades + 1)]
    away = [float(f"{digit * power:.1g}") for power in powers for digit in digits]
    return [tick for tick in sorted([*(-tick for tick in away), 0.0, *away]) if low <= tick <= high]
