"""Quality against cost, as one SVG that follows the page's colours.

Matplotlib writes fixed colours; the ones used here stand for CSS values and are exchanged afterwards,
so the same drawing serves light and dark pages.
"""

import io
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter, NullLocator

COLOURS = 12
"""How many model colours the page defines, `--c0` ... `--c11`; later models begin again."""
MARKERS = "osD^v<>ph8d*"
INK, MUTED, LINE, PAPER = "#010101", "#020202", "#030303", "#040404"
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
    """One plot. `share`: the values are shares in [0, 1], shown in percent; otherwise a logarithmic axis."""

    title: str
    share: bool
    curves: tuple[Curve, ...]


def render(panels: Sequence[Panel]) -> str:
    """The panels side by side over one legend, as an `<svg>` element. The same panels give the same bytes."""
    labels = {curve.name for panel in panels for curve in panel.curves}
    columns = min(6, max(1, 150 // (8 + max(map(len, labels), default=0))))  # as many as the width holds
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
        written = io.StringIO()
        nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))
        figure.savefig(written, format="svg", transparent=True, metadata=nothing)
    svg = written.getvalue()
    svg = svg[svg.index("<svg") :].strip()
    for placeholder, css in CSS.items():
        svg = svg.replace(placeholder, css)
    return svg


def fill(axes: Axes, panel: Panel) -> dict[str, Any]:
    """Draw one panel; returns each curve's legend handle by name."""
    sharing: dict[int, list[str]] = {}
    for curve in panel.curves:
        for point in curve.points:
            sharing.setdefault(point.nfe, []).append(curve.name)

    def apart(curve: Curve, nfe: int) -> float:  # else the last curve would hide the others
        return float(nfe * 1.035 ** (sharing[nfe].index(curve.name) - (len(sharing[nfe]) - 1) / 2))

    handles: dict[str, Any] = {}
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
    axes.set_xlabel("evaluations of the network per picture")
    axes.set_title(panel.title, fontsize=12, fontweight="bold", pad=12)
    if panel.share:
        axes.yaxis.set_major_formatter(FuncFormatter(lambda share, _: f"{100 * share:g} %"))
    else:
        axes.set_yscale("log", nonpositive="clip")
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.yaxis.set_minor_formatter(NullFormatter())
    return handles
