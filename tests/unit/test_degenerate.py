"""Samplers that are degenerate on purpose: the headline or a flag distinguishes each from a perfect one."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from benchmarks.degenerate import Labels, degenerate, drawn, perfect
from torch import Tensor

from fewstep.config.classifier import ClassifierConfig
from fewstep.config.data import DataConfig
from fewstep.config.training import StudentTrainingConfig
from fewstep.core.keyed import Key
from fewstep.data.shards import open_images, read_index
from fewstep.evaluation.copies import nearness_limit
from fewstep.evaluation.evaluation_set import grouped, look_at, training_layout
from fewstep.evaluation.figures import Yardstick, figures
from fewstep.evaluation.flags import drifted, flags
from fewstep.evaluation.kernel import polynomial
from fewstep.evaluation.observations import observe
from fewstep.evaluation.record import Interval
from fewstep.evaluation.schema import Figures, Floor, Reference
from fewstep.features.attribute_classifier import AttributeClassifier
from fewstep.preparation.prepare import prepare
from fewstep.pretraining.classifier import ClassifierTraining
from fewstep.training.loop import train

RESOLUTION, PROMPTS = 16, 300


@dataclass(frozen=True)
class Setting:
    classifier: AttributeClassifier
    yardstick: Yardstick
    prompts: list[str]
    labels: list[Labels]
    images: Mapping[str, Tensor]
    reference: Reference

    def figures(self, images: Tensor) -> Figures:
        return figures(observe(images, self.classifier, self.prompts), self.yardstick)

    def flags(self, measured: Figures) -> str:
        return "; ".join(flags(measured, self.reference))


@pytest.fixture(scope="module")
def setting(tmp_path_factory: pytest.TempPathFactory) -> Setting:
    """The default data in small, a classifier of it, and every sampler's images."""
    folder = tmp_path_factory.mktemp("degenerate")
    data = folder / "data"
    config = DataConfig(source="shapes", count=3000, resolution=RESOLUTION, heldout=0.4)
    prepare(config, 0, data)
    index = read_index(data)
    assert index.labels and index.hidden
    torch.manual_seed(0)
    classifier = AttributeClassifier({**index.labels, **index.hidden}, (16, 32), 16, tuple(index.hidden))
    training = StudentTrainingConfig(steps=150, batch_size=64, learning_rate=5e-3, warmup=10)
    images = open_images(data, "train", Key(0, "order"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FEWSTEP_TRACKERS", "")
        learned = ClassifierTraining(
            classifier, ClassifierConfig(widths=(16, 32), training=training), images, 0
        )
        train(learned, "judge", 0, folder)
    classifier.eval().requires_grad_(False)

    held_out = open_images(data, "heldout", Key(0, "prompts"))
    real = held_out.rows(range(held_out.total))
    captions = [image.caption for image in real[:PROMPTS]]
    extra, groups = grouped(captions, 60, 4)
    labels = [image.labels for image in real[:PROMPTS]]
    known = {image.caption: image.labels for image in real if image.labels}
    seen, layouts = look_at(real, classifier), training_layout(data, 10_000, Key(0, "training"))
    yardstick = Yardstick(
        labels, groups, seen.rows(range(PROMPTS)), seen.features, layouts,
        nearness_limit(seen.layout, layouts), classifier.config.hidden, polynomial,
    )  # fmt: skip
    prompts = [*captions, *extra]
    wanted = [known[prompt] for prompt in prompts]
    made = degenerate(wanted, RESOLUTION, data)
    best = figures(observe(made["perfect"], classifier, prompts), yardstick)
    reference = Reference(floor=Floor(**dict(best), pairing="caption"), teacher=best, teacher_steps=16)
    return Setting(classifier, yardstick, prompts, wanted, made, reference)


def test_a_perfect_sampler_has_no_distance_and_no_flag(setting: Setting) -> None:
    for start in (10_000, 20_000, 30_000):

        def again(labels: Labels, i: int, side: int, start: int = start) -> np.ndarray:
            return perfect(labels, start + i, side)

        measured = setting.figures(drawn(again, setting.labels, RESOLUTION))
        assert measured.kernel_distance.low < 1e-3
        assert setting.flags(measured) == ""
        assert measured.prompt_accuracy and measured.prompt_accuracy.value > 0.6


def test_images_better_than_the_teachers_have_no_flag(setting: Setting) -> None:
    blurred = setting.figures(setting.images["blurred"])
    reference = setting.reference.model_copy(update={"teacher": blurred})
    assert "detail" not in "; ".join(flags(setting.figures(setting.images["perfect"]), reference))


@pytest.mark.parametrize(
    ("change", "usual", "expected"),
    [
        ((-0.02, 0.02), -0.24, False),  # as real images, where the teacher is blurred
        ((-0.30, -0.26), -0.24, True),  # further than LARGE_DRIFT
        ((-0.30, -0.20), -0.24, False),  # not clearly
        ((-0.18, -0.12), -0.05, False),
        ((-0.20, -0.16), -0.05, True),  # further than DRIFT beyond the teacher
        ((0.11, 0.15), -0.05, True),
        ((0.11, 0.15), 0.04, False),
    ],
)
def test_a_tone_drifts_beyond_the_teachers_or_far(
    change: tuple[float, float], usual: float, expected: bool
) -> None:
    low, high = change
    assert drifted(Interval(value=(low + high) / 2, low=low, high=high), usual) == expected


@pytest.mark.parametrize(
    ("name", "flag"),
    [
        ("fixed", "diversity per prompt"),
        ("top_left", "place is not distributed"),
        ("middle", "diversity per prompt in where things are"),
        ("blurred", "detail"),
        ("saturated", "saturation"),
        ("noise", "prompt accuracy"),
        ("shuffled captions", "prompt accuracy"),
        ("training images", "training image"),
    ],
)
def test_a_degenerate_sampler_is_flagged(setting: Setting, name: str, flag: str) -> None:
    assert flag in setting.flags(setting.figures(setting.images[name]))


@pytest.mark.parametrize("name", ["top_left", "middle", "noise"])
def test_the_headline_sees_position(setting: Setting, name: str) -> None:
    measured, best = (setting.figures(setting.images[key]) for key in (name, "perfect"))
    assert measured.kernel_distance.low > best.kernel_distance.high
    assert measured.layout_distance.low > best.layout_distance.high
