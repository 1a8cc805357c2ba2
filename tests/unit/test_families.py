"""For each family, the whole way in miniature: data, triplets, reflow, halving, distillation, evaluation."""

from pathlib import Path

import pytest
import torch

from fewstep.artifacts.manifest import identity
from fewstep.backbones.model import Model, open_model
from fewstep.config.evaluate import EvaluationSetConfig
from fewstep.config.sampling import SamplingConfig
from fewstep.config.training import StudentTrainingConfig
from fewstep.core.hardware import device
from fewstep.core.keyed import Key
from fewstep.core.paths import DATA, JUDGE, MODELS, TEACHER, TRIPLETS
from fewstep.data.noise import noise_key
from fewstep.data.triplets import collate, open_triplets
from fewstep.diffusion.schedules import RectifiedFlow
from fewstep.evaluation.evaluate import measure
from fewstep.evaluation.evaluation_set import make as make_evaluation_set
from fewstep.features.attribute_classifier import AttributeClassifier
from fewstep.features.network import open_features
from fewstep.methods import direct, halve, reflow
from fewstep.sampling.draw import Sampler
from fewstep.sources.shapes import LABELS
from fewstep.students.learn import Task, learn
from tests.miniature import draw_triplets, import_miniature, prepare_images
from tests.pipelines import MAKERS

TWO_STEPS = StudentTrainingConfig(steps=2, batch_size=4, learning_rate=1e-4)
LEARNING = StudentTrainingConfig(steps=6, batch_size=8, learning_rate=2e-4)


def error(model: Model) -> float:
    """Of the model's one step from each triplet's noise: mean absolute distance to its end point."""
    pairs = collate(open_triplets([TRIPLETS / "0"], Key(0, "any")).rows(range(8)), noise_key(0), device())
    with torch.no_grad():
        one = torch.ones(len(pairs.eps), device=device())
        x_hat = model.denoiser.on(RectifiedFlow())(pairs.eps, one, pairs.conditions).x_0
    return float((x_hat - pairs.x_0).abs().mean())


@pytest.mark.parametrize("family", sorted(MAKERS))
def test_the_whole_way(family: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("FEWSTEP_TRACKERS", "")
    resolution = 16 if family == "pixel" else 64
    prepare_images(resolution)
    backbone = import_miniature(family)
    features = TEACHER
    if family == "pixel":  # it has no autoencoder to take features from
        features = JUDGE
        AttributeClassifier(LABELS, (8, 16), 4).save(JUDGE, resolution, {"data": DATA})

    teacher = draw_triplets(backbone, guidance=2.0)
    first = reflow.Config(training=TWO_STEPS, **{"from": "teacher"})
    learn(Task("reflow", "reflow", "reflow", first, [TRIPLETS / "0"], 0))
    second = halve.Config(steps=2, training=TWO_STEPS, **{"from": "reflow"})
    learn(Task("halve", "halve-2", "halve", second, [TRIPLETS / "0"], 0))
    values = {"method": "direct", "from": "halve-2", "perceptual_weight": 0.1, "pixel_weight": 0.1}
    last = direct.Config.model_validate(values | {"training": LEARNING})
    learn(Task("distill", "student", "direct", last, [TRIPLETS / "0"], 0, features))
    student = open_model(MODELS / "student", backbone)
    assert student.steps == 1 and student.denoiser.path == RectifiedFlow()
    assert student.parameters == open_model(TEACHER, backbone).parameters
    assert error(student) < error(open_model(MODELS / "halve-2", backbone))

    network = open_features(features)
    on, _ = make_evaluation_set(
        EvaluationSetConfig(pictures=20, reference=24, grid=2), DATA, teacher, network, 0
    )
    metrics, images = measure(
        Sampler(student, backbone, SamplingConfig()), identity(MODELS / "student"), (1, 2), on, network
    )
    assert images[1].shape == (20, resolution, resolution, 3) and images[1].dtype == torch.uint8
    assert metrics.steps["2"].nfe == 2
    assert metrics.steps["1"].frechet_distance > 0
    interval = metrics.steps["1"].kernel_distance
    assert interval.low <= interval.value <= interval.high
    assert metrics.straightness is None  # learned at t = 1 only
