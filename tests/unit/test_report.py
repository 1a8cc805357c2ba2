"""The page: complete, self-contained, deterministic, and refused when its inputs do not fit together."""

import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from fewstep.errors import UserError
from fewstep.evaluation.record import write_record
from fewstep.evaluation.schema import Speed, SpeedLog
from fewstep.layout import EVALUATION_SET, LOGS, METRICS, MODELS
from fewstep.report.page import build
from tests.reports import PROMPTS, STEPS, Reader, artifact, metrics, project

NEEDS = {"prepare_data": [], "train_teacher": ["prepare_data"], "report": ["train_teacher"]}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return project(tmp_path)


@pytest.fixture(scope="module")
def html(tmp_path_factory: pytest.TempPathFactory) -> str:
    return page(project(tmp_path_factory.mktemp("project")))


def page(root: Path, models: Sequence[str] = tuple(STEPS)) -> str:
    build(models, root, NEEDS, root / "reports/index.html")
    return (root / "reports/index.html").read_text()


def test_the_same_inputs_give_the_same_bytes(html: str, root: Path) -> None:
    assert page(root) == html


def test_the_page_needs_nothing_but_itself(html: str) -> None:
    read = Reader(html)
    fetched = read.values("src", "href", "xlink:href", "data", "srcset")
    assert fetched and all(value.startswith(("data:", "#")) for value in fetched)
    assert all(target.startswith("#") for target in re.findall(r"url\((.*?)\)", html))
    assert "@import" not in html and "<script" not in html


def test_links_lead_somewhere_and_ids_are_unique(html: str) -> None:
    read = Reader(html)
    ids = read.values("id")
    assert len(set(ids)) == len(ids)
    assert {link[1:] for link in read.values("href", "xlink:href") if link.startswith("#")} <= set(ids)


def test_every_model_shows_every_picture_at_every_step_count(html: str) -> None:
    read = Reader(html)
    rows = 1 + sum(map(len, STEPS.values()))
    assert sum(value.startswith("data:image/png") for value in read.values("src")) == rows * len(PROMPTS)
    assert "tiny, 1\N{NO-BREAK SPACE}step, noise 9: a large blue ring" in read.values("title")


def test_every_colour_is_defined_for_light_and_dark(html: str) -> None:
    light, dark = (
        set(re.findall(r"(--[\w-]+):", block)) for block in re.findall(r":root \{(.*?)\}", html, re.S)
    )
    assert light == dark
    assert set(re.findall(r"var\((--[\w-]+)\)", html)) - {"--colour"} <= light


def test_prompts_are_shown_and_not_obeyed(html: str) -> None:
    assert PROMPTS[1] not in html
    assert PROMPTS[1] in Reader(html).text


def test_the_headline_compares_the_cheapest_student_with_the_teachers_best(html: str) -> None:
    text = " ".join(Reader(html).text.split())
    assert "16 network evaluations per picture, brought down to 2" in text
    assert "16.0 × the teacher’s Fréchet distance" in text  # 20 at one step over 1.25 at eight


def test_what_nobody_measured_is_a_dash(root: Path) -> None:
    unlabelled = metrics("tiny", root, [1])
    at_one = unlabelled.steps["1"].model_copy(update={"prompt_accuracy": None, "attributes": None})
    write_record(root / METRICS / "tiny.json", unlabelled.model_copy(update={"steps": {"1": at_one}}))
    assert "None" not in page(root)
    assert "Timed on" not in page(root)


def test_times_are_shown_once_measured(root: Path) -> None:
    speed = Speed(latency_s=0.0123, pictures_per_second=456.0, peak_memory_bytes=789_000_000)
    log = SpeedLog(
        model="tiny",
        machine="a fast one",
        device="cpu",
        memory_counter="ru_maxrss",
        batch_size=8,
        steps={"1": speed},
    )
    write_record(root / LOGS / "speed/tiny.json", log)
    shown = " ".join(Reader(page(root)).text.split())
    assert all(figure in shown for figure in ("12.3 ms", "456", "789 MB", "Timed on a fast one"))


def test_a_page_without_a_teacher_has_no_ratios(root: Path) -> None:
    text = Reader(page(root, ["reflow", "tiny"])).text
    assert text.count("×") == 1  # in the note that explains the ratio


def test_a_teacher_alone_has_a_page(root: Path) -> None:
    text = Reader(page(root, ["teacher"])).text
    assert "Few-step report" in text and "tiny" not in text


@pytest.mark.parametrize(
    ("lost", "stage"),
    [
        ("artifacts/evaluation_set/manifest.json", "dvc repro"),
        ("artifacts/evaluation_set/grid-real.png", "dvc repro"),
        ("artifacts/evaluations/tiny/grid-1.png", "dvc repro"),
        ("artifacts/evaluations/tiny/manifest.json", "dvc repro"),
        ("artifacts/models/tiny/manifest.json", "dvc repro"),
        ("metrics/tiny.json", "dvc repro evaluate@tiny"),
    ],
)
def test_a_missing_input_is_named_with_its_remedy(root: Path, lost: str, stage: str) -> None:
    (root / lost).unlink()
    with pytest.raises(UserError) as refusal:
        page(root)
    assert lost in str(refusal.value) and stage in str(refusal.value)
    assert not (root / "reports/index.html").exists()


def test_figures_of_another_model_are_refused(root: Path) -> None:
    artifact(root / MODELS / "tiny", "model", {"teacher": root / MODELS / "teacher"})
    with pytest.raises(UserError, match=r"metrics/tiny\.json.*evaluate@tiny"):
        page(root)


def test_pictures_of_another_evaluation_set_are_refused(root: Path) -> None:
    artifact(root / EVALUATION_SET, "evaluation_set", {}, ["grid-real.png"])
    with pytest.raises(UserError, match=r"evaluations/teacher.*evaluate@teacher"):
        page(root)


def test_figures_over_other_features_are_not_compared(root: Path) -> None:
    write_record(
        root / METRICS / "tiny.json", metrics("tiny", root, [1]).model_copy(update={"features": "inception"})
    )
    with pytest.raises(UserError, match="'inception' cannot be compared with 'judge'"):
        page(root)


def test_no_models_is_a_mistake_in_the_params(root: Path) -> None:
    with pytest.raises(UserError, match=r"evaluate\.models"):
        page(root, [])


def test_the_report_needs_no_torch() -> None:
    code = "import sys, fewstep.report.page; print([m for m in ('torch', 'dvc') if m in sys.modules])"
    assert (
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
        == "[]\n"
    )
