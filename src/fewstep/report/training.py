"""Curves of the evaluations during training, as one SVG."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.figure import Figure

from fewstep.core.files import read_json
from fewstep.measures import TONES
from fewstep.report.comparison import Model
from fewstep.report.plots import COLOURS, MUTED, STYLE, svg_of

MEASURES = {
    "feature_distance": "Feature distance",
    "agreement": "Distance of latents",
    "diversity": "Diversity of a prompt",
} | {tone: f"{tone.capitalize()}, %" for tone in TONES}
"""Measure -> title of its plot."""
COLUMNS = 4


@dataclass(frozen=True)
class Training:
    """One model's records; colour: its place in the list of models."""

    name: str
    colour: int
    records: Sequence[dict[str, Any]]


def curves(models: Sequence[Model], folder: Path) -> list[Training]:
    """Curves of the models that were evaluated during training; folder: the folder of all models."""
    files = [(model, folder / model.name / "evaluations.json") for model in models]
    return [
        Training(model.name, model.place, read_json(file)["curve"]) for model, file in files if file.exists()
    ]


def render(trainings: Sequence[Training]) -> str:
    """A small plot per measure, over the progress of each training in percent; empty where there are none."""
    if not trainings:
        return ""
    shown = [
        name for name in MEASURES if any(name in record for each in trainings for record in each.records)
    ]
    rows = math.ceil(len(shown) / COLUMNS)
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(11.8, 2.4 * rows + 0.6), layout="constrained")
        panels = figure.subplots(rows, COLUMNS, squeeze=False).flat
        handles: dict[str, Any] = {}
        for name, axes in zip(shown, panels, strict=False):
            for each in trainings:
                scale = 100 if name in TONES else 1
                points = [(r["step"], scale * r[name]) for r in each.records if name in r]
                steps, values = zip(*points, strict=True)
                share = [100 * step / steps[-1] for step in steps]
                colour = f"#00aa{each.colour % COLOURS:02x}"
                (handles[each.name],) = axes.plot(share, values, color=colour, marker="o", markersize=3.5)
            if name in TONES:
                axes.axhline(0, color=MUTED, linewidth=1, linestyle="--")
            axes.set_title(MEASURES[name], fontsize=10.5, fontweight="bold")
            axes.set_xlabel("% of the training")
        for axes in list(panels):
            axes.remove()
        figure.legend([*handles.values()], [*handles], loc="outside lower center", ncols=6, frameon=False)
        return svg_of(figure, "training")
