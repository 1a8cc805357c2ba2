"""The page that compares variants of the chain."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from fewstep.artifacts.manifest import identity
from fewstep.core.errors import UserError
from fewstep.core.paths import EVALUATION_SET
from fewstep.report.ablation import Ablation, Line, Variant
from fewstep.report.comparison import Comparison, Model, load
from fewstep.report.lineage import read_manifest
from fewstep.report.page import plot, write


def build(variants: Sequence[Variant], out: Path) -> None:
    """Write the page that compares the variants.

    Raises UserError naming the input that is missing or does not fit, and the stage that makes it.
    """
    ablation = load_all(variants)
    named = [replace(line.model, name=f"{line.model.name}, {line.label}") for line in ablation.lines]
    floors = ablation.floors
    floor = floors[0][1] if len(floors) == 1 else None
    write(out, "variants.html", ablation=ablation, plots=plot(named, floor))


def load_all(variants: Sequence[Variant]) -> Ablation:
    """Read every variant; equal models become one line. Raises UserError as `comparison.load`."""
    if not variants:
        raise UserError("no variant has an evaluated model to compare; name an evaluate stage in `targets`")
    same: dict[object, list[tuple[Variant, Comparison, Model]]] = {}
    for variant in variants:
        comparison = load(variant.models, variant.root)
        for model in comparison.models:
            drawn = identity(model.results[0].strip.parent)
            key = (model.name, model.metrics.model_dump_json(), drawn)
            same.setdefault(key, []).append((variant, comparison, model))
    order = list(dict.fromkeys(name for variant in variants for name in variant.models))
    lines = sorted(same.values(), key=lambda having: order.index(having[0][2].name))
    return Ablation(
        tuple(variants),
        tuple(
            Line(
                variants=tuple(variant for variant, _, _ in having),
                shared=len(having) == len(variants) > 1,
                comparison=having[0][1],
                model=replace(having[0][2], place=place),
                evaluation_set=read_manifest(having[0][0].root / EVALUATION_SET),
            )
            for place, having in enumerate(lines)
        ),
    )
