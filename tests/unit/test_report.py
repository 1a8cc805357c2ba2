"""The page: complete, self-contained, deterministic, and refused when its inputs do not fit together."""

import re
import subprocess
import sys
from collections.abc import Mapping, Sequence
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fewstep.artifacts.folder import whole_folder, write_json
from fewstep.artifacts.manifest import Manifest, identity
from fewstep.errors import UserError
from fewstep.evaluation.record import Interval, write_record
from fewstep.evaluation.schema import Metrics, Speed, SpeedLog, StepMetrics
from fewstep.layout import DATA, EVALUATION_SET, EVALUATIONS, LOGS, METRICS, MODELS
from fewstep.report.page import build

PROMPTS = ["a small red star", "<script>alert('x')</script> & co", "a large blue ring"]
STEPS = {"teacher": [8, 2], "reflow": [2, 1], "tiny": [1]}
NEEDS = {"prepare_data": [], "train_teacher": ["prepare_data"], "report": ["train_teacher"]}


def strip(path: Path, side: int = 8) -> None:
    """A strip of `PROMPTS` noisy squares, the same for the same name."""
    rng = np.random.default_rng(list(path.name.encode()))
    Image.fromarray(rng.integers(0, 256, (side, side * len(PROMPTS), 3), dtype=np.uint8)).save(path)


def artifact(folder: Path, kind: str, made_from: Mapping[str, Path], strips: Sequence[str] = ()) -> None:
    """A sealed folder with these strips; an evaluation set also has its prompts."""
    with whole_folder(folder) as staging:
        for name in strips:
            strip(staging / name)
        if kind == "evaluation_set":
            write_json(
                staging / "prompts.json", {"prompts": PROMPTS, "noise": [7, 8, 9], "labels": [None] * 3}
            )
        Manifest.seal(staging, kind, {"name": folder.name}, made_from)


def metrics(name: str, root: Path, steps: Sequence[int]) -> Metrics:
    """Plausible figures: the Frechet distance at n steps is 10 / n, twice that for students."""

    def at(n: int) -> StepMetrics:
        distance = (1 if name == "teacher" else 2) * 10 / n
        return StepMetrics(
            nfe=2 * n,
            prompt_accuracy=Interval(value=0.75, low=0.5, high=0.875),
            attributes={"shape": 0.8, "colour": 1.0},
            frechet_distance=Interval(value=distance, low=0.9 * distance, high=1.1 * distance),
            kernel_distance=-0.001,
            precision=0.5,
            recall=0.25,
            teacher_rmse=0.125,
            teacher_similarity=0.9,
            flops_per_picture=1.5e9 * n,
        )

    return Metrics(
        model=name,
        manifest=identity(root / MODELS / name),
        pictures=3,
        reference=3,
        features="judge",
        parameters=1_240_000,
        straightness=None,
        steps={str(n): at(n) for n in steps},
    )


def project(root: Path) -> Path:
    """What the stages leave behind for three models: data -> teacher -> reflow -> tiny."""
    artifact(root / DATA, "data", {})
    artifact(root / MODELS / "teacher", "teacher", {"data": root / DATA})
    artifact(root / MODELS / "reflow", "model", {"teacher": root / MODELS / "teacher"})
    artifact(root / MODELS / "tiny", "model", {"reflow": root / MODELS / "reflow"})
    artifact(root / EVALUATION_SET, "evaluation_set", {"data": root / DATA}, ["grid-real.png"])
    for name, steps in STEPS.items():
        made_from = {"model": root / MODELS / name, "evaluation_set": root / EVALUATION_SET}
        artifact(root / EVALUATIONS / name, "evaluation", made_from, [f"grid-{n}.png" for n in steps])
        write_record(root / METRICS / f"{name}.json", metrics(name, root, steps))
    return root


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return project(tmp_path)


@pytest.fixture(scope="module")
def html(tmp_path_factory: pytest.TempPathFactory) -> str:
    return page(project(tmp_path_factory.mktemp("project")))


def page(root: Path, models: Sequence[str] = tuple(STEPS)) -> str:
    build(models, root, NEEDS, root / "reports/index.html")
    return (root / "reports/index.html").read_text()


class Reader(HTMLParser):
    """Collects what a browser would fetch, show and identify; fails on tags closed in the wrong order."""

    VOID = ("meta", "link", "img", "col")

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.attributes: list[tuple[str, str, str]] = []
        self.text = ""
        self.feed(html)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.attributes += [(tag, name, value or "") for name, value in attrs]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.attributes += [(tag, name, value or "") for name, value in attrs]

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data

    def values(self, *names: str) -> list[str]:
        return [value for _, name, value in self.attributes if name in names]


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
