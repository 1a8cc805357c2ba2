"""The gallery of methods as a Markdown table and an image: docs/methods.md.

    cp examples/gallery/params.yaml params.yaml && dvc repro
    python -m benchmarks.gallery --grid docs/methods.png

One row per student and step count. The operations are those of the student's training and of all trainings
between the teacher and it (benchmarks/compute.py). The seconds are those between the first and the last step
in the tracker's files, so they are missing where no tracker was on.
"""

import argparse
from collections.abc import Iterator
from pathlib import Path

from benchmarks.compute import operations
from PIL import Image, ImageDraw
from tensorboard.backend.event_processing.event_accumulator import (  # type: ignore[import-untyped]
    EventAccumulator,
)

from fewstep.chain import Chain, ancestors, load_chain
from fewstep.core.paths import LOGS
from fewstep.core.quiet import quiet
from fewstep.evaluation.record import Interval
from fewstep.evaluation.schema import Figures
from fewstep.report.comparison import Comparison, load

LABEL = 14
"""Height of a column's title, pixels."""
SCALE = 2
"""Enlargement of the grid's images."""
HEADER = (
    "| model | steps | accuracy | distance / teacher's (95 %) | to the teacher's images | diversity "
    "| place, tint: p | largest drift | TFLOP | s | warnings |\n"
    "|---|---|---|---|---|---|---|---|---|---|---|"
)


def main() -> None:
    """Print the table; write the grid where a file is named."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--grid", type=Path, help="PNG file of the images")
    chosen = parser.parse_args()
    quiet()
    chain = load_chain()
    compared = load(list(chain.evaluate.models), Path())
    print("\n".join([HEADER, *rows(chain, compared)]))
    if chosen.grid:
        grid(compared).save(chosen.grid, optimize=True)


def rows(chain: Chain, compared: Comparison) -> Iterator[str]:
    """The floor, the teacher, and each student at each step count."""
    if compared.reference.floor is not None:
        floor = compared.reference.floor
        yield row("real images", "", floor, "", "", "", "", "")
    made = chain.models()
    counted = operations(chain)
    for model in compared.models:
        line = [name for name in (model.name, *ancestors(model.name, made)) if name in counted]
        spent = f"{sum(counted[name].whole for name in line) / 1e12:.1f}" if line else ""
        times = [seconds(name) for name in line]
        took = f"{sum(t for t in times if t is not None):.0f}" if line and None not in times else ""
        for result in model.results:
            metrics = result.metrics
            ratio = metrics.kernel_ratio
            against = (
                ""
                if ratio.value is None
                else f"{ratio.value:.2f} ({number(ratio.low)} - {number(ratio.high)})"
            )
            to_teacher = f"{metrics.teacher_kernel_distance.value:.4f}"
            flags = "; ".join(metrics.flags)
            yield row(model.name, str(result.steps), metrics, against, to_teacher, spent, took, flags)


def row(
    name: str, steps: str, measured: Figures, against: str, to_teacher: str, spent: str, took: str, flags: str
) -> str:
    """A line of the table."""
    accuracy = "" if measured.prompt_accuracy is None else percent(measured.prompt_accuracy)
    diversity = "" if measured.diversity is None else f"{measured.diversity.distance.value:.2f}"
    hidden = ", ".join(f"{attribute.p_value:.2g}" for attribute in (measured.hidden or {}).values())
    tone = max(measured.drift, key=lambda tone: abs(measured.drift[tone].value))
    drift = f"{tone} {100 * measured.drift[tone].value:+.0f} %"
    cells = (name, steps, accuracy, against, to_teacher, diversity, hidden, drift, spent, took, flags)
    return "| " + " | ".join(cells) + " |"


def percent(share: Interval) -> str:
    """A share with its interval."""
    return f"{100 * share.value:.1f} % ({100 * share.low:.1f} - {100 * share.high:.1f})"


def number(bound: float | None) -> str:
    """A bound of an interval; none is infinite."""
    return "inf" if bound is None else f"{bound:.2f}"


def seconds(name: str) -> float | None:
    """Seconds between the first and the last step of a training; None where no tracker recorded them."""
    total = 0.0
    for file in sorted((LOGS / name).glob("events.*")):
        events = EventAccumulator(str(file)).Reload()
        stamps = [event.wall_time for tag in events.Tags()["scalars"] for event in events.Scalars(tag)]
        total += max(stamps) - min(stamps) if stamps else 0.0
    return total or None


def grid(compared: Comparison) -> Image.Image:
    """A column per model and step count, after the real images; a row per prompt."""
    columns = [("real", compared.real)]
    columns += [(f"{m.name} {r.steps}", r.strip) for m in compared.models for r in m.results]
    strips = [(title, Image.open(strip).convert("RGB")) for title, strip in columns]
    side = strips[0][1].height * SCALE
    count = strips[0][1].width // strips[0][1].height
    page = Image.new("RGB", (side * len(strips), LABEL + side * count), "white")
    draw = ImageDraw.Draw(page)
    for x, (title, strip) in enumerate(strips):
        draw.text((x * side + 1, 1), title, "black")
        large = strip.resize((strip.width * SCALE, strip.height * SCALE), Image.Resampling.NEAREST)
        for y in range(count):
            page.paste(large.crop((y * side, 0, (y + 1) * side, side)), (x * side, LABEL + y * side))
    return page


if __name__ == "__main__":
    main()
