"""Variants of the chain on one page: what they have in common once, what differs side by side."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from fewstep.artifacts.manifest import Manifest, identity
from fewstep.core.errors import UserError
from fewstep.core.paths import EVALUATION_SET
from fewstep.evaluation.schema import Floor
from fewstep.report.comparison import Comparison, Model, Result, load
from fewstep.report.lineage import read_manifest
from fewstep.report.page import plot, write


@dataclass(frozen=True)
class Variant:
    """A chain that ran in `root`. overrides: key of params.yaml -> value. models: those that were judged."""

    name: str
    overrides: Mapping[str, str]
    root: Path
    models: Sequence[str]


@dataclass(frozen=True)
class Line:
    """A model, once for all `variants` in which it is the very same; `shared`: in all there are."""

    variants: tuple[Variant, ...]
    shared: bool
    comparison: Comparison
    model: Model
    evaluation_set: Manifest

    @property
    def label(self) -> str:
        """Whose it is."""
        return "all variants" if self.shared else ", ".join(variant.name for variant in self.variants)

    @property
    def columns(self) -> str:
        """Equal where the same images were asked for: prompts, noise and the real ones."""
        files = self.evaluation_set.files
        noise = self.evaluation_set.facts.get("noise")
        return str((files.get("prompts.json"), noise, files.get("grid-real.png")))

    @property
    def yardstick(self) -> str:
        """Equal where the figures can be compared: real images, features and counts."""
        metrics, inputs = self.model.metrics, dict(self.evaluation_set.made_from)
        inputs.pop("teacher", None)
        return str((sorted(inputs.items()), metrics.features, metrics.pictures, metrics.reference))


Row = tuple[Line, Result]


@dataclass(frozen=True)
class Table:
    """Rows whose images have the same columns, by model and step count, most steps first."""

    variants: tuple[str, ...]
    comparison: Comparison
    rows: Mapping[tuple[str, int], Sequence[Row]]


@dataclass(frozen=True)
class Ablation:
    """The variants and their models; lines of one model stand together."""

    variants: tuple[Variant, ...]
    lines: tuple[Line, ...]

    @property
    def varied(self) -> dict[str, list[str]]:
        """The keys whose values differ, and these; all keys of a variant that is alone."""
        keys = dict.fromkeys(key for variant in self.variants for key in variant.overrides)
        values = {key: values_of(self.variants, key) for key in keys}
        return {key: found for key, found in values.items() if len(found) > 1 or len(self.variants) == 1}

    def value(self, line: Line, key: str) -> str:
        """What a varied key is for a line; "any" where it has every value and is the same."""
        found = values_of(line.variants, key)
        return "any" if len(found) == len(self.varied[key]) > 1 else ", ".join(found)

    @property
    def rows(self) -> dict[tuple[str, int], list[Row]]:
        """Every line at every step count, by model and step count."""
        return grouped(self.lines)

    @property
    def tables(self) -> list[Table]:
        """The rows, apart where their images have other columns."""
        found: dict[str, list[Line]] = {}
        for line in self.lines:
            found.setdefault(line.columns, []).append(line)
        return [
            Table(
                tuple(dict.fromkeys(variant.name for line in lines for variant in line.variants)),
                lines[0].comparison,
                grouped(lines),
            )
            for lines in found.values()
        ]

    @property
    def comparable(self) -> bool:
        """Whether all figures were taken in the same way."""
        return len({line.yardstick for line in self.lines}) == 1

    @property
    def floors(self) -> list[tuple[str, Floor]]:
        """Every floor that some line has, once, and whose it is."""
        whose: dict[str, dict[str, None]] = {}
        found: dict[str, Floor] = {}
        for line in self.lines:
            if floor := line.comparison.reference.floor:
                key = floor.model_dump_json()
                found[key] = floor
                whose.setdefault(key, {}).update(dict.fromkeys(v.name for v in line.variants))
        return [(label(list(whose[key]), self.variants), floor) for key, floor in found.items()]

    @property
    def contest(self) -> list[Row]:
        """What differs at the fewest evaluations, best rank first; teachers where no student does."""
        differing = [
            (line, result) for line in self.lines if not line.shared for result in line.model.results
        ]
        students = [row for row in differing if row[0].model.kind != "teacher"] or differing
        fewest = min((result.metrics.nfe for _, result in students), default=0)
        return sorted((row for row in students if row[1].metrics.nfe == fewest), key=lambda row: row[1].rank)

    @property
    def lead(self) -> Row | None:
        """The best of the contest; None where there is nothing to compare."""
        found = self.contest
        return found[0] if found and self.comparable and len(self.variants) > 1 else None

    @property
    def near(self) -> list[str]:
        """The other variants whose intervals overlap the leading one's."""
        (lead, best), *others = self.contest
        led = best.metrics.kernel_distance
        close = [
            line
            for line, result in others
            if result.metrics.kernel_distance.low <= led.high
            and led.low <= result.metrics.kernel_distance.high
        ]
        names = dict.fromkeys(variant.name for line in close for variant in line.variants)
        return [name for name in names if name not in {variant.name for variant in lead.variants}]


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
        raise UserError("no variant has a judged model to compare; name an evaluate stage in `targets`")
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


def grouped(lines: Sequence[Line]) -> dict[tuple[str, int], list[Row]]:
    """The lines at each of their step counts, by model and step count, most steps first."""
    names = list(dict.fromkeys(line.model.name for line in lines))
    rows = [(line, result) for line in lines for result in line.model.results]
    found: dict[tuple[str, int], list[Row]] = {}
    for line, result in sorted(rows, key=lambda row: (names.index(row[0].model.name), -row[1].steps)):
        found.setdefault((line.model.name, result.steps), []).append((line, result))
    return found


def label(names: Sequence[str], variants: Sequence[Variant]) -> str:
    """Whose something is that the variants of these names share."""
    return "all variants" if len(names) == len(variants) > 1 else ", ".join(names)


def values_of(variants: Iterable[Variant], key: str) -> list[str]:
    """The values that `key` has in them, each once."""
    return list(dict.fromkeys(variant.overrides.get(key, "as it is") for variant in variants))
