"""Prefect artifacts of a flow run, shown on its page: progress, figures, images, a link to the report.

They are optional: where the server cannot be reached the page stays empty, and the flow continues.
"""

import base64
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import copy_context
from pathlib import Path
from queue import SimpleQueue
from threading import Thread
from typing import Any

from prefect.artifacts import (
    create_link_artifact,
    create_markdown_artifact,
    create_progress_artifact,
    create_table_artifact,
    update_progress_artifact,
)
from prefect.logging import get_run_logger

from fewstep.config.base import PARAMS, load_params
from fewstep.core.paths import EVALUATION_SET, EVALUATIONS, METRICS, REPORT
from fewstep.evaluation.plain_text import interval_text, ratio_text
from fewstep.evaluation.record import read_record
from fewstep.evaluation.schema import Figures, Metrics, Reference

COMPARISON = REPORT.with_name("ablation.html")
PATIENCE = 5.0
"""Seconds to wait until the last progress is shown."""
LINE = re.compile(r"^(?P<name>[^:]+):\s+(?P<percent>\d+) %")


@contextmanager
def unless_it_fails() -> Iterator[None]:
    """Log any error as a warning and continue."""
    try:
        yield
    except Exception as error:
        get_run_logger().warning("not shown on this page: %r", error)


def key_of(text: str) -> str:
    """A valid key of an artifact: lower-case letters, digits and dashes."""
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")


@contextmanager
def following(stage: str) -> Iterator[Callable[[str], None]]:
    """Yields a function to call with each line of the stage: it logs the line and shows the progress in it.

    The progress is sent from a separate thread, so that a slow or lost server does not delay the stage. Where
    several lines are waiting, only the newest one of each progress bar is sent.
    """
    log = get_run_logger()
    lines: SimpleQueue[str | None] = SimpleQueue()
    thread = Thread(target=copy_context().run, args=(show_progress, stage, lines), daemon=True)
    thread.start()

    def hear(line: str) -> None:
        log.info(line)
        lines.put(line)

    try:
        yield hear
    finally:
        lines.put(None)
        thread.join(PATIENCE)


def show_progress(stage: str, lines: "SimpleQueue[str | None]") -> None:
    """Send the progress of each loop of the stage to the server, until `lines` yields None."""
    begun: dict[str, object] = {}
    line: str | None = ""
    while line is not None:
        newest: dict[str, tuple[float, str]] = {}
        line = lines.get()
        while line is not None:
            if progress := LINE.match(line):
                newest[progress["name"]] = float(progress["percent"]), line
            if lines.empty():
                break
            line = lines.get()
        for name, (percent, text) in newest.items():
            with unless_it_fails():
                if name not in begun:
                    begun[name] = create_progress_artifact(
                        percent, key=key_of(f"{stage} {name}"), description=f"{stage}: {name}"
                    )
                else:
                    update_progress_artifact(begun[name], percent, text)  # type: ignore[arg-type]


def publish(root: Path, models: Mapping[str, Sequence[int]]) -> None:
    """Show the chain's figures, images and report. models: evaluated model -> step counts."""
    with unless_it_fails():
        about = "Every model on the same prompts and noise"
        create_table_artifact(rows_of(root, models), key="metrics", description=about)
    with unless_it_fails():
        about = "Columns share their prompt and noise"
        create_markdown_artifact(images_of(root, models), key="pictures", description=about)
    if (root / REPORT).is_file():
        with unless_it_fails():
            place = (root / REPORT).resolve().as_uri()
            create_link_artifact(place, str(REPORT), key="report", description="The report")


def compare(
    root: Path,
    clones: Mapping[str, Path],
    overrides: Mapping[str, Mapping[str, Any]],
    evaluated: Mapping[str, Mapping[str, Sequence[int]]],
) -> None:
    """Show variants of the chain: a table, their images, and a page in `root`, the workspace.

    clones: variant -> its clone. overrides: variant -> its overrides. evaluated: variant -> `models` of
    `publish`.
    """
    with unless_it_fails():
        rows = [
            {"variant": name, **{key: str(value) for key, value in overrides[name].items()}, **row}
            for name, folder in clones.items()
            for row in rows_of(folder, evaluated[name])
        ]
        about = "Every variant on the same prompts and noise"
        create_table_artifact(rows, key="comparison", description=about)
    with unless_it_fails():
        page = [f"## {name}\n\n{images_of(folder, evaluated[name])}" for name, folder in clones.items()]
        about = "Columns share their prompt and noise"
        create_markdown_artifact("\n\n".join(page), key="comparison-pictures", description=about)
    with unless_it_fails():
        # Imported here because it loads matplotlib, which the other flows do not need.
        from fewstep.report.ablation import Variant
        from fewstep.report.variants import build

        keys = dict.fromkeys(key for changed in overrides.values() for key in changed)
        variants = []
        for name, models in evaluated.items():
            params = load_params(clones[name] / PARAMS)
            values = {key: setting(params, key) for key in keys}
            variants += [Variant(name, values, clones[name], list(models))] if models else []
        build(variants, root / COMPARISON)
        place = (root / COMPARISON).resolve().as_uri()
        create_link_artifact(
            place, str(COMPARISON), key="comparison-page", description="The variants side by side"
        )


def setting(values: Any, key: str) -> str:
    """The value at a dotted key of params.yaml, as text; null where there is none."""
    for part in key.split("."):
        values = values.get(part) if isinstance(values, Mapping) else None
    return values if isinstance(values, str) else json.dumps(values)


def rows_of(root: Path, models: Mapping[str, Sequence[int]]) -> list[dict[str, str]]:
    """One row per evaluated model and step count, after the floor's row, if there is one."""
    file = root / EVALUATION_SET / "figures.json"
    floor = read_record(Reference, file).floor if file.is_file() else None
    rows = [row_of("real images", floor)] if floor else []
    for model, counts in models.items():
        file = root / METRICS / f"{model}.json"
        known = read_record(Metrics, file) if file.is_file() else None
        for count in counts:
            measured = known.steps.get(str(count)) if known else None
            if known is None or measured is None:
                continue
            row = row_of(model, measured) | {"steps": str(count), "NFE": str(measured.nfe)}
            row["ratio to teacher"] = ratio_text(measured.kernel_ratio)
            rows.append(row | {"parameters": f"{known.parameters:,}", "warnings": "; ".join(measured.flags)})
    return rows


def row_of(name: str, figures: Figures) -> dict[str, str]:
    """The figures that models and real images share; the other columns are empty."""
    return {
        "model": name,
        "steps": "",
        "NFE": "",
        "prompt accuracy": interval_text(figures.prompt_accuracy),
        "kernel distance": interval_text(figures.kernel_distance),
        "ratio to teacher": "",
        "Frechet distance": f"{figures.frechet_distance:.3g}",
        "parameters": "",
        "warnings": "",
    }


def images_of(root: Path, models: Mapping[str, Sequence[int]]) -> str:
    """A Markdown table with the strips of images, embedded in the text."""
    strips = {"real": root / EVALUATION_SET / "grid-real.png"} | {
        f"{model} {count}": root / EVALUATIONS / model / f"grid-{count}.png"
        for model, counts in models.items()
        for count in counts
    }
    lines = ["| | |", "|---|---|"]
    for name, strip in strips.items():
        if strip.is_file():
            data = base64.b64encode(strip.read_bytes()).decode()
            lines.append(f"| {name} | ![{name}](data:image/png;base64,{data}) |")
    return "\n".join(lines)
