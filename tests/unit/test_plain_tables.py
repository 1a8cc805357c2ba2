"""Tables outside the report: what a flow run's page and a model card have of the figures."""

from pathlib import Path

from flows.publish import rows_of

from fewstep.core.paths import EVALUATION_SET
from fewstep.export.card import measured
from tests.reports import STEPS, metrics, project


def test_a_flow_shows_real_images_and_then_every_model_at_its_step_counts(tmp_path: Path) -> None:
    rows = rows_of(project(tmp_path), STEPS)
    assert [(row["model"], row["steps"]) for row in rows] == [
        ("real images", ""),
        *((name, str(n)) for name, counts in STEPS.items() for n in counts),
    ]
    assert len({tuple(row) for row in rows}) == 1  # a table has the same columns in every row
    assert rows[0]["kernel distance"] == "-0.00250 (-0.00275 - -0.00225)"
    assert rows[-1] == {
        "model": "tiny",
        "steps": "1",
        "NFE": "2",
        "prompt accuracy": "0.75 (0.50 - 0.88)",
        "kernel distance": "20.0 (18.0 - 22.0)",
        "ratio to teacher": "16.0 x (12.8 - 19.2)",
        "Frechet distance": "0.432",
        "parameters": "1,240,000",
        "warnings": "",
    }
    flagged = next(row for row in rows if row["warnings"])
    assert (flagged["model"], flagged["steps"]) == ("teacher", "2")
    assert flagged["warnings"] == "detail -23% against real images; <b>place</b>"


def test_a_flow_shows_what_is_there(tmp_path: Path) -> None:
    root = project(tmp_path)
    (root / EVALUATION_SET / "figures.json").unlink()
    assert [row["model"] for row in rows_of(root, {"tiny": [1, 4], "absent": [1]})] == ["tiny"]


def test_a_card_has_each_step_count_with_its_intervals_and_warnings(tmp_path: Path) -> None:
    lines = measured(metrics("teacher", project(tmp_path), [8, 2]))
    assert [line for line in lines if line.startswith(("| 8", "| 2"))] == [
        "| 8 | 16 | 1.25 (1.12 - 1.38) | 1 x | 0.75 (0.50 - 0.88) | 0.432 |",
        "| 2 | 4 | 5.00 (4.50 - 5.50) | 4.00 x (3.20 - 4.80) | 0.75 (0.50 - 0.88) | 0.432 |",
    ]
    assert [line for line in lines if line.startswith("- ")] == [
        "- 2 steps: detail -23% against real images",
        "- 2 steps: <b>place</b>",
    ]


def test_a_model_that_was_not_measured_has_no_table() -> None:
    assert measured(None) == []
