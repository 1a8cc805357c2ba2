"""The page of an ablation: every variant's figures, what they share once, and no comparison that is none."""

import re
import shutil
from collections.abc import Sequence
from pathlib import Path

import pytest
import yaml
from flows import publish

from fewstep.core.errors import UserError
from fewstep.core.files import write_json
from fewstep.core.paths import EVALUATION_SET, EVALUATIONS, METRICS, MODELS
from fewstep.evaluation.record import read_record, write_record
from fewstep.evaluation.schema import Metrics
from fewstep.report.ablation import Variant
from fewstep.report.variants import build
from tests.reports import PROMPTS, STEPS, Reader, around, artifact, metrics, project, ratio_to

KEY = "students.tiny.from"


def evaluate(root: Path, name: str, steps: Sequence[int], distance: float | None = None) -> None:
    """What `evaluate@name` leaves; distance: at the only step count."""
    made_from = {"model": root / MODELS / name, "evaluation_set": root / EVALUATION_SET}
    artifact(root / EVALUATIONS / name, "evaluation", made_from, [f"grid-{n}.png" for n in steps])
    record = metrics(name, root, steps)
    if distance is not None:
        changed = {"kernel_distance": around(distance), "kernel_ratio": ratio_to(distance)}
        only = {n: at.model_copy(update=changed) for n, at in record.steps.items()}
        record = record.model_copy(update={"steps": only})
    write_record(root / METRICS / f"{name}.json", record)


def variant(root: Path, tiny_from: str, distance: float, models: Sequence[str] = tuple(STEPS)) -> Variant:
    """The small project with its last student made from another model, and so another one."""
    if not root.exists():
        project(root)
    artifact(root / MODELS / "tiny", "model", {tiny_from: root / MODELS / tiny_from})
    evaluate(root, "tiny", STEPS["tiny"], distance)
    return Variant(root.name, {KEY: tiny_from, "seed": "0"}, root, models)


def evaluated_anew(
    root: Path, noise: int = 0, data: str = "data", prompts: Sequence[str] = PROMPTS, floor: bool = True
) -> None:
    """The same project evaluated on other noise, data or prompts."""
    write_json(root / f"{data}.json", {"data": data})
    made_from, metadata = {"data": root / f"{data}.json"}, {"noise": noise}
    artifact(root / EVALUATION_SET, "evaluation_set", made_from, ["grid-real.png"], metadata, prompts, floor)
    for name, steps in STEPS.items():
        evaluate(root, name, steps)


@pytest.fixture
def variants(tmp_path: Path) -> list[Variant]:
    """Chains with one teacher and one reflowed model; only the last student differs."""
    return [
        variant(tmp_path / "from-reflow", "reflow", 20.0),
        variant(tmp_path / "from-teacher", "teacher", 30.0),
        variant(tmp_path / "from-tiny", "tiny", 20.5),
    ]


def page(variants: Sequence[Variant], out: Path) -> str:
    build(variants, out)
    return out.read_text()


def text(html: str) -> str:
    return " ".join(Reader(html).text.split())


def rows(html: str) -> list[str]:
    """The rows of the table of figures, without its head."""
    body = html[html.index('<table class="metrics">') :]
    body = body[body.index("</thead>") : body.index("</table>")]
    return [text(row) for row in re.findall(r"<tr.*?</tr>", body, re.S)]


def test_every_variants_figures_stand_in_its_row(variants: list[Variant], tmp_path: Path) -> None:
    shown = [row for row in rows(page(variants, tmp_path / "page.html")) if "from-" in row]
    assert shown == [
        "tiny from-reflow reflow 1 2 75.0 %50.0 % – 87.5 % 20.018.0 – 22.0 16.0 ×12.8 – 19.2 0.432 1.24 M",
        "from-teacher teacher 1 2 75.0 %50.0 % – 87.5 % 30.027.0 – 33.0 24.0 ×19.2 – 28.8 0.432 1.24 M",
        "from-tiny tiny 1 2 75.0 %50.0 % – 87.5 % 20.518.4 – 22.6 16.4 ×13.1 – 19.7 0.432 1.24 M",
    ]


def test_what_all_variants_share_is_shown_once(variants: list[Variant], tmp_path: Path) -> None:
    html = page(variants, tmp_path / "page.html")
    shared = [row for row in rows(html) if "all variants any" in row]
    assert [row.split()[0] for row in shared] == ["teacher", "teacher", "reflow", "reflow"]
    assert len(rows(html)) == 1 + len(shared) + len(variants)  # the first is the real images'
    assert rows(html)[0].startswith("real imageswith the same caption all variants")
    images = [value for value in Reader(html).values("src") if value.startswith("data:image/png")]
    assert len(images) == (1 + len(shared) + len(variants)) * len(PROMPTS)
    assert "tiny, from-teacher, 1\N{NO-BREAK SPACE}step, noise 9: a large blue ring" in Reader(html).values(
        "title"
    )


def test_what_some_variants_share_is_shown_once_for_them(variants: list[Variant], tmp_path: Path) -> None:
    copy = shutil.copytree(variants[0].root, tmp_path / "twin")
    twin = Variant("twin", {KEY: "reflow", "seed": "1"}, copy, tuple(STEPS))
    shown = rows(page([*variants, twin], tmp_path / "page.html"))
    assert "tiny from-reflow, twin reflow any 1 2" in "\n".join(shown)
    assert sum("twin" in row for row in shown) == 1


def test_a_model_that_was_drawn_otherwise_is_not_shared(variants: list[Variant], tmp_path: Path) -> None:
    record = metrics("reflow", variants[0].root, STEPS["reflow"])
    write_record(variants[0].root / METRICS / "reflow.json", record.model_copy(update={"guidance": 3.0}))
    labels = [row for row in rows(page(variants, tmp_path / "page.html")) if "any" not in row.split()]
    assert (
        sum("from-reflow" in row for row in labels) == 3
    )  # twice as the reflowed model, once as the student


def test_only_parameters_that_differ_are_columns(variants: list[Variant], tmp_path: Path) -> None:
    shown = text(page(variants, tmp_path / "page.html"))
    assert f"Varied: {KEY} (reflow, teacher, tiny)." in shown and "seed" not in shown
    alone = text(page(variants[:1], tmp_path / "page.html"))
    assert "seed (0)" in alone and "Best of" not in alone and "side by side" not in alone


def test_the_headline_names_the_best_and_whom_its_interval_does_not_exclude(
    variants: list[Variant], tmp_path: Path
) -> None:
    shown = text(page(variants, tmp_path / "page.html"))
    assert "Best of 3 variants at 2 evaluations: from-reflow" in shown
    assert "Its interval overlaps those of from-tiny: this distance" in shown
    clear = text(page(variants[:2], tmp_path / "page.html"))
    assert "Best of 2 variants" in clear and "overlaps" not in clear


def test_more_evaluations_do_not_make_a_variant_the_best(variants: list[Variant], tmp_path: Path) -> None:
    record = metrics("reflow", variants[1].root, STEPS["reflow"])  # better than any student, in twice as many
    write_record(variants[1].root / METRICS / "reflow.json", record.model_copy(update={"guidance": 3.0}))
    assert "Best of 3 variants at 2 evaluations" in text(page(variants, tmp_path / "page.html"))


def test_variants_without_a_difference_have_no_best(variants: list[Variant], tmp_path: Path) -> None:
    same = [Variant(one.name, one.overrides, one.root, ["teacher"]) for one in variants]
    shown = text(page(same, tmp_path / "page.html"))
    assert "Nothing that was evaluated differs" in shown and "Best of" not in shown


def test_ratios_need_no_teacher_among_the_models(variants: list[Variant], tmp_path: Path) -> None:
    students = [Variant(one.name, one.overrides, one.root, ["tiny"]) for one in variants]
    lines = rows(page(students, tmp_path / "page.html"))
    assert [re.findall(r"(\S+)\s×", row)[0] for row in lines[1:]] == ["16.0", "24.0", "16.4"]


def test_a_variant_with_a_warning_is_not_the_best(variants: list[Variant], tmp_path: Path) -> None:
    record = read_record(Metrics, variants[0].root / METRICS / "tiny.json")
    flagged = record.steps["1"].model_copy(update={"flags": ("few kinds of images",)})
    record = record.model_copy(update={"steps": {"1": flagged}})
    write_record(variants[0].root / METRICS / "tiny.json", record)
    html = page(variants, tmp_path / "page.html")
    assert "Best of 3 variants at 2 evaluations: from-tiny" in text(html)
    assert [row for row in rows(html) if "few kinds" in row] == [
        row for row in rows(html) if "from-reflow" in row
    ]


def test_real_images_stand_in_a_row_for_the_variants_that_have_them(
    variants: list[Variant], tmp_path: Path
) -> None:
    evaluated_anew(variants[0].root, floor=False)
    evaluated_anew(variants[1].root)
    lines = rows(page(variants[:2], tmp_path / "page.html"))
    (shown,) = [row for row in lines if row.startswith("real images")]
    assert shown.startswith("real imageswith the same caption from-teacher – ")


@pytest.mark.parametrize(("noise", "prompts"), [(1, PROMPTS), (0, ["a house", "a tree", "a cat"])])
def test_other_noise_or_prompts_get_a_table_of_their_own_and_a_warning(
    noise: int, prompts: Sequence[str], variants: list[Variant], tmp_path: Path
) -> None:
    warning = "no column of one is the column of another"
    assert warning not in text(page(variants, tmp_path / "page.html"))
    evaluated_anew(variants[0].root)
    evaluated_anew(variants[1].root, noise=noise, prompts=prompts)
    html = page(variants[:2], tmp_path / "page.html")
    assert warning in text(html) and html.count('<table class="grid">') == 2
    assert "cannot be compared" not in text(html)
    last = html[html.rindex('<table class="grid">') : html.rindex("</table>")]
    described = Reader(f"{last}</table>").values("alt")
    assert described == list(prompts) * (1 + sum(map(len, STEPS.values())))


def test_against_other_data_none_is_the_best(variants: list[Variant], tmp_path: Path) -> None:
    for i, one in enumerate(variants[:2]):
        evaluated_anew(one.root, data=f"data-{i}")
    students = [Variant(one.name, one.overrides, one.root, ["tiny"]) for one in variants[:2]]
    html = page(students, tmp_path / "page.html")
    assert "figures cannot be compared" in text(html) and "Best of" not in text(html)
    assert html.count('<table class="grid">') == 1  # the same prompts, noise and real images


def test_names_and_values_are_shown_and_not_obeyed(variants: list[Variant], tmp_path: Path) -> None:
    evil = "<script>alert('x')</script> & co"
    mine = [
        Variant(f"{evil} {i}", {f"{evil}.from": f"{evil} {i}"}, one.root, one.models)
        for i, one in enumerate(variants)
    ]
    html = page(mine, tmp_path / "page.html")
    assert "<script" not in html
    assert f"{evil} 1" in text(html) and f"{evil}.from" in text(html)


def test_the_page_is_whole_and_the_same_for_the_same_inputs(variants: list[Variant], tmp_path: Path) -> None:
    html = page(variants, tmp_path / "page.html")
    assert page(variants, tmp_path / "again.html") == html
    fetched = Reader(html).values("src", "href", "xlink:href", "data", "srcset")
    assert fetched and all(value.startswith(("data:", "#")) for value in fetched)
    assert "@import" not in html and "None" not in text(html)


@pytest.mark.parametrize(
    "lost",
    [
        "artifacts/evaluation_set/manifest.json",
        "artifacts/evaluations/tiny/grid-1.png",
        "artifacts/models/reflow/manifest.json",
        "metrics/tiny.json",
    ],
)
def test_a_missing_input_of_any_variant_is_named(variants: list[Variant], tmp_path: Path, lost: str) -> None:
    (variants[1].root / lost).unlink()
    with pytest.raises(UserError, match=re.escape(f"from-teacher/{lost}")):
        page(variants, tmp_path / "page.html")
    assert not (tmp_path / "page.html").exists()


def test_no_variant_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no variant has an evaluated model"):
        page([], tmp_path / "page.html")


def test_a_flow_leaves_the_page_in_the_workspace_and_links_to_it(
    variants: list[Variant], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    links: dict[str, str] = {}
    for made in ("create_table_artifact", "create_markdown_artifact"):
        monkeypatch.setattr(publish, made, lambda *_, **__: None)
    monkeypatch.setattr(
        publish, "create_link_artifact", lambda link, *_, key, **__: links.update({key: link})
    )
    for one in variants:
        (one.root / "params.yaml").write_text(
            yaml.safe_dump({"students": {"tiny": {"from": one.overrides[KEY], "ema": None}}})
        )
    publish.compare(
        tmp_path,
        {one.name: one.root for one in variants},
        {
            variants[0].name: {},
            variants[1].name: {KEY: "teacher"},
            variants[2].name: {"students.tiny.ema": None},
        },
        {one.name: STEPS for one in variants},
    )
    shown = tmp_path / "reports/ablation.html"
    assert links == {"comparison-page": shown.as_uri()}
    assert f"Varied: {KEY} (reflow, teacher, tiny)." in text(shown.read_text())
