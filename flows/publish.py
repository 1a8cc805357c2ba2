"""What a flow run leaves on its page: progress, figures, pictures, the way to the report.

A page is a convenience: where the server cannot be reached it stays empty, and nothing else happens.
"""

import base64
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from prefect.artifacts import (
    create_link_artifact,
    create_markdown_artifact,
    create_progress_artifact,
    create_table_artifact,
    update_progress_artifact,
)
from prefect.logging import get_run_logger

from fewstep.evaluation.schema import Metrics
from fewstep.layout import EVALUATION_SET, EVALUATIONS, METRICS, REPORT

LINE = re.compile(r"^(?P<name>[^:]+):\s+(?P<percent>\d+) %")


@contextmanager
def unless_it_fails() -> Iterator[None]:
    """Say what went wrong, and go on."""
    try:
        yield
    except Exception as error:
        get_run_logger().warning("not shown on this page: %r", error)


def key_of(text: str) -> str:
    """As artifacts' keys must be: lower-case letters, digits and dashes."""
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")


def following(stage: str) -> Callable[[str], None]:
    """Turns the stage's own progress lines into a progress artifact for each thing it goes through."""
    begun: dict[str, object] = {}

    def hear(line: str) -> None:
        found = LINE.match(line)
        if found is None:
            return
        name, percent = found["name"], float(found["percent"])
        with unless_it_fails():
            if name not in begun:
                begun[name] = create_progress_artifact(
                    percent, key=key_of(f"{stage} {name}"), description=f"{stage}: {name}"
                )
            else:
                update_progress_artifact(begun[name], percent, line)  # type: ignore[arg-type]

    return hear


def publish(root: Path) -> None:
    """The chain's figures, pictures and report."""
    with unless_it_fails():
        create_table_artifact(
            rows_of(root), key="metrics", description="Every model on the same prompts and noises"
        )
    with unless_it_fails():
        create_markdown_artifact(
            pictures_of(root), key="pictures", description="Columns share their prompt and noise"
        )
    if (root / REPORT).is_file():
        with unless_it_fails():
            create_link_artifact(
                (root / REPORT).resolve().as_uri(), str(REPORT), key="report", description="The report"
            )


def rows_of(root: Path) -> list[dict[str, str]]:
    """One row per model and step count."""
    rows = []
    for file in sorted((root / METRICS).glob("*.json")):
        metrics = Metrics.model_validate_json(file.read_text())
        for steps, found in metrics.steps.items():
            accuracy, distance = found.prompt_accuracy, found.frechet_distance
            rows.append(
                {
                    "model": metrics.model,
                    "steps": steps,
                    "prompt accuracy": f"{accuracy.value:.3f}" if accuracy else "",
                    "Frechet distance": f"{distance.value:.3g} ({distance.low:.3g} - {distance.high:.3g})",
                    "parameters": f"{metrics.parameters:,}",
                }
            )
    return rows


def pictures_of(root: Path) -> str:
    """The strips of pictures, one under the other, within the text."""
    lines = ["| | |", "|---|---|"]
    for strip in (
        *sorted((root / EVALUATION_SET).glob("grid-*.png")),
        *sorted((root / EVALUATIONS).glob("*/grid-*.png")),
    ):
        model = strip.parent.name if strip.parent.name != EVALUATION_SET.name else ""
        data = base64.b64encode(strip.read_bytes()).decode()
        name = f"{model} {strip.stem.removeprefix('grid-')}".strip()
        lines.append(f"| {name} | ![{name}](data:image/png;base64,{data}) |")
    return "\n".join(lines)
