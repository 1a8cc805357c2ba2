"""The plots as SVG, and how figures are written."""

from xml.etree import ElementTree

import pytest

from fewstep.report import figures
from fewstep.report.plots import COLOURS, CSS, Curve, Panel, Point, render

PANELS = [
    Panel(
        "accuracy",
        True,
        tuple(
            Curve(f"<m{i}> $x$ _", i, (Point(1, 0.5, 0.4, 0.7), Point(4, 0.9, 0.8, 1.0))) for i in range(3)
        ),
    ),
    Panel("distance", False, (Curve("<m1> $x$ _", 1, (Point(2, 3.0, 0.0, 4.0),)),)),
]


def test_the_same_panels_give_the_same_bytes() -> None:
    assert render(PANELS) == render(PANELS)


def test_the_drawing_is_well_formed_and_uses_the_pages_colours() -> None:
    svg = render(PANELS)
    assert ElementTree.fromstring(svg).tag.endswith("svg")
    assert not any(placeholder in svg for placeholder in CSS)
    assert all(f"var(--c{i})" in svg for i in range(3))


def test_names_are_text_not_markup() -> None:
    svg = render(PANELS)
    assert "<m1>" not in svg
    assert "<m1> $x$ _" in "".join(ElementTree.fromstring(svg).itertext())


def test_more_models_than_colours_can_be_drawn() -> None:
    many = tuple(Curve(str(i), i, (Point(1, 0.5, 0.5, 0.5),)) for i in range(2 * COLOURS + 1))
    assert "<svg" in render([Panel("accuracy", True, many)])


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        (figures.percent(0.9731), "97.3 %"),
        (figures.figure(0.01234), "0.0123"),
        (figures.figure(-1.0), "-1.00"),
        (figures.figure(99.99), "100"),
        (figures.figure(12345.6), "12,346"),
        (figures.times(1.0831), "1.08 ×"),
        (figures.duration(0.0123), "12.3 ms"),
        (figures.duration(61.2), "61.2 s"),
        (figures.amount(999), "999"),
        (figures.amount(1_240_000), "1.24 M"),
        (figures.amount(412e6, "B"), "412 MB"),
        (figures.counted(1, "step"), "1 step"),
        (figures.counted(2000, "step"), "2,000 steps"),
    ],
)
def test_figures_read_well(written: str, expected: str) -> None:
    assert written.replace("\N{NO-BREAK SPACE}", " ") == expected


@pytest.mark.parametrize(
    "write", [figures.percent, figures.figure, figures.times, figures.duration, figures.amount]
)
def test_a_missing_figure_is_a_dash(write: object) -> None:
    assert callable(write) and write(None) == figures.DASH
