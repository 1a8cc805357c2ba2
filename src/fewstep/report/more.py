"""The second table: a line per figure, a column per model and step count, real images first."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from fewstep.evaluation.schema import Diversity, Figures, HiddenAttribute, Speed, StepMetrics
from fewstep.report.comparison import Comparison
from fewstep.report.figures import (
    DASH,
    Written,
    amount,
    duration,
    figure,
    interval,
    percent,
    probability,
    ratio,
    signed_percent,
)

NOTHING = Written(DASH)


@dataclass(frozen=True)
class Column:
    """Figures of one set of images. step: None for real images. speed: None where it was not timed."""

    figures: Figures
    step: StepMetrics | None = None
    speed: Speed | None = None


@dataclass(frozen=True)
class Line:
    """One figure for all columns."""

    title: str
    cells: tuple[Written, ...]


@dataclass(frozen=True)
class Group:
    """Figures of one kind."""

    title: str
    lines: tuple[Line, ...]


Write = Callable[[Column], Written]


def groups(comparison: Comparison) -> list[Group]:
    """All groups with a figure that at least one column has; the first column is the floor, if any."""
    floor = comparison.reference.floor
    columns = [Column(floor)] if floor else []
    columns += [
        Column(result.metrics, result.metrics, result.speed)
        for model in comparison.models
        for result in model.results
    ]
    filled = []
    for title, writers in figures_of(columns).items():
        lines = [Line(name, tuple(write(column) for column in columns)) for name, write in writers.items()]
        if measured := tuple(line for line in lines if any(cell != NOTHING for cell in line.cells)):
            filled.append(Group(title, measured))
    return filled


def figures_of(columns: Iterable[Column]) -> dict[str, dict[str, Write]]:
    """Title of each group -> title of each figure -> how it is written."""
    all_figures = [column.figures for column in columns]
    attributes = names(measured.attributes for measured in all_figures)
    hidden = names(measured.hidden for measured in all_figures)
    shares = {name: names(values(measured, name) for measured in all_figures) for name in hidden}
    tones = names(measured.drift for measured in all_figures)
    return {
        "Against real images": {
            "Fréchet distance": lambda c: Written(figure(c.figures.frechet_distance)),
            "layout distance": lambda c: interval(c.figures.layout_distance),
            "its ratio to the teacher": lambda c: ratio(c.step.layout_ratio if c.step else None),
            "precision": lambda c: Written(percent(c.figures.precision)),
            "recall": lambda c: Written(percent(c.figures.recall)),
            "density": lambda c: Written(figure(c.figures.density)),
            "coverage": lambda c: Written(percent(c.figures.coverage)),
        },
        "What the prompt names": {
            **{f"{name} is right": attribute(name) for name in attributes},
            "CLIP score": lambda c: interval(c.figures.prompt_similarity),
        },
        "Images of one prompt": {
            "distance in features": diverse(lambda diversity: interval(diversity.distance)),
            "distance in layout": diverse(lambda diversity: interval(diversity.layout)),
            "Vendi score": diverse(lambda diversity: Written(figure(diversity.vendi))),
        },
        **{f"Hidden attribute: {name}": hidden_lines(name, shares[name]) for name in hidden},
        "Change against real images": {name: drift(name) for name in tones},
        "Copies": {"close to a training image": lambda c: interval(c.figures.copied, percent)},
        "Against the teacher’s images": {
            "kernel distance": stepped(lambda step: interval(step.teacher_kernel_distance)),
            "Fréchet distance": stepped(lambda step: Written(figure(step.teacher_frechet_distance))),
            "RMSE": stepped(lambda step: Written(figure(step.teacher_rmse))),
            "similarity": stepped(lambda step: Written(figure(step.teacher_similarity))),
        },
        "Cost": {
            "evaluations (NFE)": stepped(lambda step: Written(str(step.nfe))),
            "FLOP per image": stepped(lambda step: Written(amount(step.flops_per_picture))),
            "one image": timed(lambda speed: duration(speed.latency_s)),
            "its text encoder": timed(lambda speed: duration(speed.text_s)),
            "its denoiser": timed(lambda speed: duration(speed.denoiser_s)),
            "its decoder": timed(lambda speed: duration(speed.decoder_s)),
            "images per second": timed(lambda speed: figure(speed.pictures_per_second)),
            "peak memory": timed(lambda speed: amount(speed.peak_memory_bytes, "B")),
        },
    }


def names(mappings: Iterable[Iterable[str] | None]) -> list[str]:
    """All keys of the mappings, in order of first appearance."""
    return list(dict.fromkeys(name for mapping in mappings for name in mapping or ()))


def values(measured: Figures, name: str) -> Iterable[str]:
    """The values of a hidden attribute that were recognised."""
    seen = (measured.hidden or {}).get(name)
    return sorted(seen.shares) if seen else ()


def attribute(name: str) -> Write:
    """Share of the images that show this attribute of the prompt."""
    return lambda column: Written(percent((column.figures.attributes or {}).get(name)))


def drift(name: str) -> Write:
    """Relative change of one tone."""

    def write(column: Column) -> Written:
        change = column.figures.drift.get(name)
        return interval(change, signed_percent)

    return write


def hidden_lines(name: str, shares: Iterable[str]) -> dict[str, Write]:
    """Shares of a hidden attribute's values, its test and its entropy."""
    return {
        **{share: of_hidden(name, share_of(share)) for share in shares},
        "p-value": of_hidden(name, lambda hidden: probability(hidden.p_value)),
        "entropy per prompt, bits": of_hidden(name, lambda hidden: figure(hidden.entropy)),
    }


def share_of(value: str) -> Callable[[HiddenAttribute], str]:
    """Share of the images in which a value was recognised; 0 where it never was."""
    return lambda hidden: percent(hidden.shares.get(value, 0.0))


def of_hidden(name: str, write: Callable[[HiddenAttribute], str]) -> Write:
    """A figure of one hidden attribute."""

    def written(column: Column) -> Written:
        hidden = (column.figures.hidden or {}).get(name)
        return Written(write(hidden)) if hidden else NOTHING

    return written


def diverse(write: Callable[[Diversity], Written]) -> Write:
    """A figure of the diversity."""
    return lambda c: write(c.figures.diversity) if c.figures.diversity else NOTHING


def stepped(write: Callable[[StepMetrics], Written]) -> Write:
    """A figure that only models have."""
    return lambda c: write(c.step) if c.step else NOTHING


def timed(write: Callable[[Speed], str]) -> Write:
    """A figure that depends on the machine."""
    return lambda c: Written(write(c.speed)) if c.speed else NOTHING
