"""An ablation: variants of a chain, with shared models listed once and differing ones side by side."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from fewstep.artifacts.manifest import Manifest
from fewstep.evaluation.schema import Floor
from fewstep.report.comparison import Comparison, Model, Result


@dataclass(frozen=True)
class Variant:
    """A chain that ran in `root`. overrides: key of params.yaml -> value. models: evaluated ones."""

    name: str
    overrides: Mapping[str, str]
    root: Path
    models: Sequence[str]


@dataclass(frozen=True)
class Line:
    """A model of the `variants` in which it is identical; `shared`: it is identical in all of them."""

    variants: tuple[Variant, ...]
    shared: bool
    comparison: Comparison
    model: Model
    evaluation_set: Manifest

    @property
    def label(self) -> str:
        """The variants, as a table names them."""
        return "all variants" if self.shared else ", ".join(variant.name for variant in self.variants)

    @property
    def columns(self) -> str:
        """A key that is equal where prompts, noise and real images of the shown strips are equal."""
        files = self.evaluation_set.files
        noise = self.evaluation_set.facts.get("noise")
        return str((files.get("prompts.json"), noise, files.get("grid-real.png")))

    @property
    def measurement(self) -> str:
        """A key that is equal where figures can be compared: the same real images, features and counts."""
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
        """Key -> its values, for keys whose values differ; for a single variant, all of its keys."""
        keys = dict.fromkeys(key for variant in self.variants for key in variant.overrides)
        values = {key: values_of(self.variants, key) for key in keys}
        return {
            key: choices for key, choices in values.items() if len(choices) > 1 or len(self.variants) == 1
        }

    def value(self, line: Line, key: str) -> str:
        """The value of a varied key for a line; "any" where the line has all of its values."""
        choices = values_of(line.variants, key)
        return "any" if len(choices) == len(self.varied[key]) > 1 else ", ".join(choices)

    @property
    def rows(self) -> dict[tuple[str, int], list[Row]]:
        """Every line at every step count, by model and step count."""
        return grouped(self.lines)

    @property
    def tables(self) -> list[Table]:
        """The rows, with a separate table for each set of image columns."""
        by_columns: dict[str, list[Line]] = {}
        for line in self.lines:
            by_columns.setdefault(line.columns, []).append(line)
        return [
            Table(
                tuple(dict.fromkeys(variant.name for line in lines for variant in line.variants)),
                lines[0].comparison,
                grouped(lines),
            )
            for lines in by_columns.values()
        ]

    @property
    def comparable(self) -> bool:
        """Whether all figures were measured on the same real images, features and counts."""
        return len({line.measurement for line in self.lines}) == 1

    @property
    def floors(self) -> list[tuple[str, Floor]]:
        """(names of the variants, floor) of each distinct floor."""
        whose: dict[str, dict[str, None]] = {}
        distinct: dict[str, Floor] = {}
        for line in self.lines:
            if floor := line.comparison.reference.floor:
                key = floor.model_dump_json()
                distinct[key] = floor
                whose.setdefault(key, {}).update(dict.fromkeys(v.name for v in line.variants))
        return [(label(list(whose[key]), self.variants), floor) for key, floor in distinct.items()]

    @property
    def ranked(self) -> list[Row]:
        """Models that differ between variants, at the fewest network evaluations, best rank first.

        Teachers only where no student differs.
        """
        differing = [
            (line, result) for line in self.lines if not line.shared for result in line.model.results
        ]
        students = [row for row in differing if row[0].model.kind != "teacher"] or differing
        fewest = min((result.metrics.nfe for _, result in students), default=0)
        return sorted((row for row in students if row[1].metrics.nfe == fewest), key=lambda row: row[1].rank)

    @property
    def lead(self) -> Row | None:
        """The best of `ranked`; None where there is nothing to compare."""
        ranked = self.ranked
        return ranked[0] if ranked and self.comparable and len(self.variants) > 1 else None

    @property
    def near(self) -> list[str]:
        """The variants whose kernel-distance intervals overlap the best one's."""
        (lead, best), *others = self.ranked
        led = best.metrics.kernel_distance
        close = [
            line
            for line, result in others
            if result.metrics.kernel_distance.low <= led.high
            and led.low <= result.metrics.kernel_distance.high
        ]
        names = dict.fromkeys(variant.name for line in close for variant in line.variants)
        return [name for name in names if name not in {variant.name for variant in lead.variants}]


def grouped(lines: Sequence[Line]) -> dict[tuple[str, int], list[Row]]:
    """The lines at each of their step counts, by model and step count, most steps first."""
    names = list(dict.fromkeys(line.model.name for line in lines))
    rows = [(line, result) for line in lines for result in line.model.results]
    groups: dict[tuple[str, int], list[Row]] = {}
    for line, result in sorted(rows, key=lambda row: (names.index(row[0].model.name), -row[1].steps)):
        groups.setdefault((line.model.name, result.steps), []).append((line, result))
    return groups


def label(names: Sequence[str], variants: Sequence[Variant]) -> str:
    """How a table names these variants."""
    return "all variants" if len(names) == len(variants) > 1 else ", ".join(names)


def values_of(variants: Iterable[Variant], key: str) -> list[str]:
    """The values that `key` has in them, each once."""
    return list(dict.fromkeys(variant.overrides.get(key, "as it is") for variant in variants))
