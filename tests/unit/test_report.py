"""The page: complete, self-contained, deterministic, and refused when its inputs do not fit together."""

import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from fewstep.artifacts.manifest import Manifest
from fewstep.core.errors import UserError
from fewstep.core.files import write_json
from fewstep.core.paths import DATA, EVALUATION_SET, EVALUATIONS, LOGS, METRICS, MODELS
from fewstep.evaluation.record import Ratio, write_record
from fewstep.evaluation.schema import Speed, SpeedLog
from fewstep.report.comparison import load
from fewstep.report.page import build
from tests.reports import PROMPTS, STEPS, Reader, around, artifact, metrics, project, reference

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


def test_every_model_shows_every_image_at_every_step_count(html: str) -> None:
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


def table(html: str, kind: str) -> str:
    """One table of figures, without its head; kind: its classes."""
    body = html[html.index(f'<table class="{kind}">') :]
    return body[body.index("</thead>") : body.index("</table>")]


def rows(html: str, kind: str = "metrics") -> list[str]:
    """What stands in the rows of a table of figures."""
    lines = re.findall(r"<tr.*?</tr>", table(html, kind), re.S)
    return [" ".join(Reader(row).text.replace("\N{MINUS SIGN}", "-").split()) for row in lines]


def change(root: Path, name: str, **figures: object) -> None:
    """Write other figures of a model at its last step count."""
    record = metrics(name, root, STEPS[name])
    last = str(STEPS[name][-1])
    steps = record.steps | {last: record.steps[last].model_copy(update=figures)}
    write_record(root / METRICS / f"{name}.json", record.model_copy(update={"steps": steps}))


def test_the_headline_compares_the_cheapest_student_with_the_teacher_at_its_full_step_count(
    html: str,
) -> None:
    text = " ".join(Reader(html).text.split())
    assert "16 network evaluations per image, brought down to 2" in text
    assert "at a kernel distance of 20.0 (18.0 – 22.0), 16.0 × the teacher’s (12.8 – 19.2)." in text


def test_a_teacher_whose_distance_may_be_0_has_no_ratio(root: Path) -> None:
    for name in ("tiny", "reflow"):
        change(root, name, kernel_ratio=Ratio(value=None, low=0.0, high=None))
    shown = page(root)
    text = " ".join(Reader(shown).text.split())
    assert "the teacher’s is not told apart from 0, so it has no ratio to the teacher." in text
    assert "– no upper end" in rows(shown)[-1] or "–no upper end" in rows(shown)[-1]
    change(root, "tiny", kernel_ratio=Ratio(value=30.0, low=2.5, high=None))
    assert "≥ 2.50 ×no upper end" in rows(page(root))[-1]


def test_real_images_have_a_row_in_every_table_and_a_band_in_every_plot(html: str, root: Path) -> None:
    assert (
        rows(html)[0]
        == "real imageswith the same caption – – 75.0 %50.0 % – 87.5 % -0.00250-0.00275 – -0.00225 – –"
    )
    more = {row.split()[0]: row for row in rows(html, "metrics more")}
    columns = 1 + sum(map(len, STEPS.values()))
    assert more["Vendi"].split()[2:] == ["3.25"] * columns
    assert more["similarity"].split()[1:] == ["–"] + ["0.900"] * (columns - 1)
    assert html.count(">real images</text>") == 1  # the legend's
    write_record(root / EVALUATION_SET / "figures.json", reference(floor=False))
    reseal(root)
    without = page(root)
    assert ">real images</text>" not in without and rows(without)[0].startswith("teacher")
    assert rows(without, "metrics more")[1].split()[2:] == ["0.432"] * (columns - 1)


def reseal(root: Path) -> None:
    """Take the evaluation set as it is now for the one that models were drawn on."""
    metadata = Manifest.open(root / MODELS / "teacher", "teacher").facts
    Manifest.seal(root / EVALUATION_SET, "evaluation_set", metadata, {"data": root / DATA})
    for name, steps in STEPS.items():
        made_from = {"model": root / MODELS / name, "evaluation_set": root / EVALUATION_SET}
        artifact(root / EVALUATIONS / name, "evaluation", made_from, [f"grid-{n}.png" for n in steps])


def test_a_warning_stands_in_its_row_and_only_there(html: str) -> None:
    warned = [row for row in rows(html) if "detail -23%" in row]
    assert len(warned) == 1 and warned[0].startswith("2 4") and warned[0].endswith("<b>place</b>")
    assert table(html, "metrics").count("<li>") == 2
    assert "<b>place</b>" not in html


def test_a_result_without_a_warning_is_preferred(root: Path) -> None:
    change(root, "reflow", flags=("few kinds of images",), kernel_distance=around(0.5))
    reflow = load(["reflow"], root).models[0]
    assert reflow.results[-1].distance < reflow.results[0].distance
    assert reflow.best is reflow.results[0]
    change(root, "tiny", flags=("few kinds of images",))
    shown = " ".join(Reader(page(root)).text.split())
    assert "The evaluation warns of reflow: few kinds of images" in shown


def test_figures_that_were_measured_for_no_model_have_no_line(html: str, root: Path) -> None:
    titles = [row for row in rows(html, "metrics more") if " " not in row or not re.search(r"\d|–", row)]
    assert titles == [
        "Against real images", "What the prompt names", "Images of one prompt", "Hidden attribute: place",
        "Change against real images", "Copies", "Against the teacher’s images", "Cost",
    ]  # fmt: skip
    assert "CLIP score" not in Reader(html).text and "peak memory" not in Reader(html).text
    change(root, "tiny", prompt_similarity=around(31.4))
    (line,) = [row for row in rows(page(root), "metrics more") if row.startswith("CLIP score")]
    assert line.startswith("CLIP score – –") and "31.4" in line


def test_what_nobody_measured_is_a_dash(root: Path) -> None:
    change(root, "tiny", prompt_accuracy=None, attributes=None, diversity=None, hidden=None)
    shown = page(root)
    assert "None" not in shown and "Timed on" not in shown and "straightness" not in shown


def test_times_are_shown_once_measured(root: Path) -> None:
    parts = {"text_s": 0.0011, "denoiser_s": 0.0097, "decoder_s": 0.0015}
    speed = Speed(latency_s=0.0123, pictures_per_second=456.0, peak_memory_bytes=789_000_000, **parts)
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
    assert all(figure in shown for figure in ("1.10 ms", "9.70 ms", "1.50 ms"))


def test_ratios_need_no_teacher_among_the_models(root: Path) -> None:
    text = Reader(page(root, ["reflow", "tiny"])).text
    assert "Few-step report" in text and "brought down" not in text
    assert "16.0 ×" in text.replace("\N{NO-BREAK SPACE}", " ")  # the set holds the teacher's images


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


def test_images_of_another_evaluation_set_are_refused(root: Path) -> None:
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


def test_curves_of_training_are_shown_beside_the_plots(root: Path) -> None:
    """Two figures on one page: their ids must not meet; a page without curves has no section for them."""
    assert "During training" not in page(root)
    for name, values in (("reflow", (0.9, 0.5)), ("tiny", (0.7, 0.4))):
        curve = [
            {"step": 10 * (i + 1), "feature_distance": value, "agreement": value, "brightness": -0.3}
            for i, value in enumerate(values)
        ]
        write_json(root / MODELS / name / "evaluations.json", {"curve": curve})
    read = Reader(page(root))
    assert "During training" in read.text
    for title in (
        "Feature distance",
        "Distance of latents",
        "Brightness",
        "% of the training",
        "reflow",
        "tiny",
    ):
        assert title in read.text, title
    # Three measures: the place of a fourth stays empty.
    figure = page(root).split("During training")[1].split("<svg")[1]
    assert figure.count('id="training-axes_') == 3
    assert "Diversity of a prompt" not in read.text, "it was not measured"
    ids = read.values("id")
    assert len(set(ids)) == len(ids)
    links = [value for value in read.values("href", "xlink:href") if value.startswith("#")]
    assert {link[1:] for link in links} <= set(ids)
