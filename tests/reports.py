"""What the stages leave behind for the pages, in small, and a reader of pages."""

from collections.abc import Mapping, Sequence
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
from PIL import Image

from fewstep.artifacts.manifest import Manifest, identity
from fewstep.core.files import whole_folder, write_json
from fewstep.core.paths import DATA, EVALUATION_SET, EVALUATIONS, METRICS, MODELS
from fewstep.evaluation.record import Interval, Ratio, write_record
from fewstep.evaluation.schema import (
    Diversity,
    Figures,
    Floor,
    HiddenAttribute,
    Metrics,
    Reference,
    StepMetrics,
)

PROMPTS = ["a small red star", "<script>alert('x')</script> & co", "a large blue ring"]
STEPS = {"teacher": [8, 2], "reflow": [2, 1], "tiny": [1]}


def strip(path: Path, side: int = 8) -> None:
    """A strip of `PROMPTS` noisy squares, the same for the same name."""
    rng = np.random.default_rng(list(path.name.encode()))
    Image.fromarray(rng.integers(0, 256, (side, side * len(PROMPTS), 3), dtype=np.uint8)).save(path)


def artifact(
    folder: Path,
    kind: str,
    made_from: Mapping[str, Path],
    strips: Sequence[str] = (),
    metadata: Mapping[str, object] | None = None,
    prompts: Sequence[str] = PROMPTS,
    floor: bool = True,
) -> None:
    """A sealed folder with these strips; an evaluation set also has more prompts than images, and figures."""
    with whole_folder(folder) as staging:
        for name in strips:
            strip(staging / name)
        if kind == "evaluation_set":
            listed = {"prompts": [*prompts, prompts[0]], "noise": [7, 8, 9, 10], "labels": [None] * 3}
            write_json(staging / "prompts.json", listed)
            write_record(staging / "figures.json", reference(floor))
        Manifest.seal(staging, kind, metadata or {"name": folder.name}, made_from)


def around(value: float, share: float = 0.1) -> Interval:
    """The value, give or take a share of it."""
    return Interval(value=value, low=value - share * abs(value), high=value + share * abs(value))


def figures(distance: float) -> Figures:
    """Plausible figures of images at this kernel distance."""
    return Figures(
        images=3,
        prompt_accuracy=Interval(value=0.75, low=0.5, high=0.875),
        attributes={"shape": 0.8, "colour": 1.0},
        prompt_similarity=None,
        kernel_distance=around(distance),
        layout_distance=around(distance / 100),
        frechet_distance=0.4321,
        precision=0.5,
        recall=0.25,
        density=0.987,
        coverage=0.625,
        diversity=Diversity(distance=around(2.5), layout=around(1.5), vendi=3.25),
        hidden={"place": HiddenAttribute(shares={"left": 0.3, "right": 0.7}, p_value=0.0123, entropy=0.9)},
        drift={"brightness": around(-0.031), "detail": around(0.0625)},
        copied=around(0.05),
    )


def reference(floor: bool = True) -> Reference:
    """What models are read against: real images, a little below 0, and the teacher's in 8 steps."""
    real = Floor(**dict(figures(-0.0025)), pairing="caption")
    return Reference(floor=real if floor else None, teacher=figures(1.25), teacher_steps=8)


def ratio_to(distance: float, teacher: float = 1.25) -> Ratio:
    """To the teacher in 8 steps."""
    value = distance / teacher
    return Ratio(
        value=value, low=value if value == 1 else 0.8 * value, high=value if value == 1 else 1.2 * value
    )


def metrics(name: str, root: Path, steps: Sequence[int]) -> Metrics:
    """Plausible figures: the kernel distance at n steps is 10 / n, twice that for students.

    The teacher in 2 steps has two warnings.
    """

    def at(n: int) -> StepMetrics:
        distance = (1 if name == "teacher" else 2) * 10 / n
        return StepMetrics(
            **dict(figures(distance)),
            nfe=2 * n,
            kernel_ratio=ratio_to(distance),
            layout_ratio=ratio_to(distance),
            teacher_kernel_distance=around(distance / 2),
            teacher_frechet_distance=0.1234,
            teacher_rmse=0.125,
            teacher_similarity=0.9,
            flops_per_picture=1.5e9 * n,
            flags=("detail -23% against real images", "<b>place</b>") if (name, n) == ("teacher", 2) else (),
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
