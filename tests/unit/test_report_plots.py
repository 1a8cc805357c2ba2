"""The plots as SVG, and how figures are written."""

from xml.etree import ElementTree

import matplotlib
import pytest
from matplotlib.figure import Figure

from fewstep.evaluation.plain_text import ratio_text
from fewstep.evaluation.record import Interval, Ratio
from fewstep.report import figures
from fewstep.report.plots import (
    COLOURS,
    CSS,
    FLOOR,
    STYLE,
    Curve,
    Panel,
    Point,
    fill,
    near_zero,
    render,
    ticks_of,
)

PANELS = [
    Panel(
        "accuracy",
        True,
        tuple(
            Curve(f"<m{i}> $x$ _", i, (Point(1, 0.5, 0.4, 0.7), Point(4, 0.9, 0.8, 1.0))) for i in range(3)
        ),
    ),
    Panel(
        "distance",
        False,
        (Curve("<m1> $x$ _", 1, (Point(2, 3.0, 0.0, 4.0), Point(4, -0.01, -0.01, 0.05))),),
        Interval(value=-0.001, low=-0.002, high=0.003),
    ),
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


def test_a_distance_below_0_is_drawn_below_the_axis_tick_of_0() -> None:
    panel = PANELS[1]
    assert near_zero(panel) == pytest.approx(1e-2)
    with matplotlib.rc_context(STYLE):
        axes = Figure().subplots()
        handles = fill(axes, panel)
    assert set(handles) == {FLOOR, "<m1> $x$ _"}
    assert handles[FLOOR].get_ydata()[0] == -0.001
    low, high = axes.get_ylim()
    assert -0.1 < low < -0.01 and 4.0 < high < 10
    heights = [axes.transData.transform((4, y))[1] for y in (-0.01, 0.0, 0.05, 3.0)]
    assert heights == sorted(heights)


@pytest.mark.parametrize(
    ("linear_to", "low", "high", "ticks"),
    [
        (0.1, 0.0, 6.0, [0, 0.1, 0.2, 0.5, 1, 2, 5]),
        (0.01, -0.02, 0.03, [-0.02, -0.01, 0, 0.01, 0.02]),
        (0.001, -0.0005, 4.0, [0, 0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1, 3]),
        (1.0, -0.5, 0.5, [0]),
    ],
)
def test_ticks_are_0_and_round_numbers_on_both_sides(
    linear_to: float, low: float, high: float, ticks: list[float]
) -> None:
    assert ticks_of(linear_to, low, high) == pytest.approx(ticks)


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
        (figures.signed_percent(-0.031), "\u22123.1 %"),
        (figures.probability(0.0123), "0.012"),
        (figures.probability(2e-9), "< 0.001"),
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
    "write",
    [
        figures.percent,
        figures.figure,
        figures.probability,
        figures.times,
        figures.duration,
        figures.amount,
        lambda value: figures.interval(value).text,
        lambda value: figures.ratio(value).text,
    ],
)
def test_a_missing_figure_is_a_dash(write: object) -> None:
    assert callable(write) and write(None) == figures.DASH


@pytest.mark.parametrize(
    ("ends", "expected"),
    [
        ((0.01234, 0.0101, 0.01523), ("0.0123", "0.0101 – 0.0152")),
        ((-0.0000214, -0.0000214, 0.00042), ("\u22120.00002", "\u22120.00002 – 0.00042")),
        ((8.49, 7.9, 9.14), ("8.49", "7.90 – 9.14")),
        ((1234.0, 1100.0, 1400.0), ("1,234", "1,100 – 1,400")),
        ((0.5, 0.5, 0.5), ("0.500", "0.500 – 0.500")),
    ],
)
def test_an_interval_has_the_digits_that_its_width_leaves(
    ends: tuple[float, float, float], expected: tuple[str, str]
) -> None:
    value, low, high = ends
    assert figures.interval(Interval(value=value, low=low, high=high)) == expected


@pytest.mark.parametrize(
    ("ratio", "expected", "plain"),
    [
        (Ratio(value=1.083, low=0.911, high=1.302), ("1.08 ×", "0.91 – 1.30"), "1.08 x (0.91 - 1.30)"),
        (Ratio(value=1.0, low=1.0, high=1.0), ("1.00 ×", ""), "1 x"),
        (
            Ratio(value=7.0, low=2.5, high=None),
            ("≥ 2.50 ×", "no upper end"),
            "at least 2.5 x; the teacher's is not told apart from 0",
        ),
        (
            Ratio(value=None, low=0.0, high=None),
            ("–", "no upper end"),
            "the teacher's is not told apart from 0",
        ),
    ],
)
def test_a_ratio_claims_no_more_than_is_known(ratio: Ratio, expected: tuple[str, str], plain: str) -> None:
    written = figures.ratio(ratio)
    assert (written.text.replace("\N{NO-BREAK SPACE}", " "), written.small) == expected
    assert ratio_text(ratio) == plain
