"""Renders the report: one file that opens offline, the same bytes for the same inputs."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from fewstep.core.files import whole_file
from fewstep.core.paths import MODELS
from fewstep.evaluation.schema import Floor
from fewstep.report import dag, figures, lineage, more, plots, training
from fewstep.report.comparison import Model, load
from fewstep.report.grid import cut

WRITTEN = (
    figures.amount,
    figures.counted,
    figures.duration,
    figures.figure,
    figures.interval,
    figures.percent,
    figures.ratio,
)


def build(models: Sequence[str], root: Path, needs: Mapping[str, Iterable[str]], out: Path) -> None:
    """Write the page about `models`, in this order, from the stages' outputs below `root`.

    needs: name of a stage -> names of the stages it needs, for the graph on the page.

    Raises UserError naming the input that is missing or does not fit, and the stage that makes it.
    """
    comparison = load(models, root)
    write(
        out,
        "page.html",
        comparison=comparison,
        plots=plot(comparison.models, comparison.reference.floor),
        more=more.groups(comparison),
        training=Markup(training.render(training.curves(comparison.models, root / MODELS))),
        dag=dag.draw(needs),
        lineage=lineage.trace([root / MODELS / name for name in models], root / MODELS.parent),
    )


def write(out: Path, template: str, **shown: object) -> None:
    """Render the template and write it to `out` atomically."""
    html = templates().get_template(template).render(**shown)
    with whole_file(out) as staging:
        staging.write_text(html, encoding="utf-8")


def templates() -> Environment:
    """The environment of the templates: all values are escaped, undefined names raise."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    for written in WRITTEN:
        environment.globals[written.__name__] = written
    environment.globals |= {"cut": cut, "colours": plots.COLOURS}
    return environment


def plot(models: Sequence[Model], floor: Floor | None) -> Markup:
    """The plots of these models."""
    return Markup(plots.render(panels(models, floor)))  # matplotlib escapes its texts


def panels(models: Sequence[Model], floor: Floor | None) -> list[plots.Panel]:
    """Prompt accuracy and kernel distance against cost; a metric that no model has is left out."""
    kinds = (
        ("prompt_accuracy", "Images that show everything the prompt says", True),
        ("kernel_distance", "Kernel distance to real images", False),
    )
    drawn = [
        plots.Panel(title, share, curves(models, name), getattr(floor, name, None))
        for name, title, share in kinds
    ]
    return [panel for panel in drawn if panel.curves]


def curves(models: Sequence[Model], metric: str) -> tuple[plots.Curve, ...]:
    """One curve for each model that `metric` was measured for."""
    drawn = []
    for model in models:
        measured = [(result.metrics.nfe, getattr(result.metrics, metric)) for result in model.results]
        points = tuple(plots.Point(nfe, m.value, m.low, m.high) for nfe, m in measured if m is not None)
        if points:
            drawn.append(plots.Curve(model.name, model.place, points))
    return tuple(drawn)
