"""For each family, the whole way in miniature: data, triplets, reflow, halving, distillation, evaluation."""

import math
from pathlib import Path

import pytest
import torch

from fewstep.artifacts.manifest import identity
from fewstep.backbones.base import open_model
from fewstep.config.evaluate import EvaluationSetConfig
from fewstep.config.sampling import SamplingConfig
from fewstep.config.training import TrainingConfig
from fewstep.core.paths import DATA, JUDGE, MODELS, TEACHER
from fewstep.diffusion.schedules import RectifiedFlow
from fewstep.evaluation.evaluate import measure
from fewstep.evaluation.evaluation_set import make as make_evaluation_set
from fewstep.features.judge import Judge
from fewstep.features.network import open_features
from fewstep.methods import direct, halve, reflow
from fewstep.sampling.draw import Sampler
from fewstep.sources.shapes import LABELS
from fewstep.students.learn import Task, learn
from tests.miniature import draw_triplets, import_miniature, prepare_pictures
from tests.pipelines import MAKERS

TWO_STEPS = TrainingConfig(steps=2, batch_size=4, learning_rate=1e-4)


@pytest.mark.parametrize("family", sorted(MAKERS))
def test_the_whole_way(family: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("FEWSTEP_TRACKERS", "")
    resolution = 16 if family == "pixel" else 64
    prepare_pictures(resolution)
    backbone = import_miniature(family)
    features = TEACHER
    if family == "pixel":  # it has no autoencoder to take features from
        features = JUDGE
        Judge(LABELS, (8, 16), 4).save(JUDGE, resolution, {"data": DATA})

    teacher = draw_triplets(backbone, guidance=2.0)
    first = reflow.Config(training=TWO_STEPS, **{"from": "teacher"})
    learn(Task("reflow", "reflow", "reflow", first, [0], 0))
    second = halve.Config(steps=2, training=TWO_STEPS, **{"from": "reflow"})
    learn(Task("halve", "halve-2", "halve", second, [0], 0))
    last = direct.Config(
        method="direct", perceptual_weight=1.0, pixel_weight=1.0, training=TWO_STEPS, **{"from": "halve-2"}
    )
    learn(Task("distill", "student", "direct", last, [0], 0, features))
    student = open_model(MODELS / "student", backbone)
    assert student.steps == 1 and student.denoiser.path == RectifiedFlow()
    assert student.parameters == open_model(TEACHER, backbone).parameters

    network = open_features(features)
    on, _ = make_evaluation_set(
        EvaluationSetConfig(pictures=20, reference=24, grid=2), DATA, teacher, network, 0
    )
    metrics, pictures = measure(
        Sampler(student, backbone, SamplingConfig()), identity(MODELS / "student"), (1, 2), on, network
    )
    assert pictures[1].shape == (20, resolution, resolution, 3) and pictures[1].dtype == torch.uint8
    assert metrics.steps["2"].nfe == 2
    assert math.isfinite(metrics.steps["1"].frechet_distance)
    assert math.isfinite(metrics.steps["1"].kernel_distance.value)
    assert metrics.straightness is None  # learned at t = 1 only
