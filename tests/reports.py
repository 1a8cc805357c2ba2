"""What the stages leave behind for the pages, in small, and a reader of pages."""

from collections.abc import Mapping, Sequence
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
from PIL import Image

from fewstep.artifacts.folder import whole_folder, write_json
from fewstep.artifacts.manifest import Manifest, identity
from fewstep.evaluation.record import Interval, write_record
from fewstep.evaluation.schema import Metrics, StepMetrics
from fewstep.layout import DATA, EVALUATION_SET, EVALUATIONS, METRICS, MODELS

PROMPTS = ["a small red star", "<script>alert('x')</script> & co", "a large blue ring"]
STEPS = {"teacher": [8, 2], "reflow": [2, 1], "tiny": [1]}


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


class Reader(HTMLParser):
    """Collects what a browser would fetch, show and identify; fails on tags closed in the wrong order."""

    VOID = ("meta", "link", "img", "col", "wbr", "br")

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
