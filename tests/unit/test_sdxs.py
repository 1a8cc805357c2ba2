"""SDXS, trained by the loop: the right networks move, and students in closed form."""

import tempfile
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import norm  # type: ignore[import-untyped]
from torch import Tensor, nn

from fewstep.backbones.model import Model, open_model
from fewstep.core.keyed import Key
from fewstep.core.paths import JUDGE, MODELS, TRIPLETS
from fewstep.data.triplets import TripletBatch
from fewstep.diffusion.denoiser import Conditions, Denoiser, Prediction
from fewstep.diffusion.sampling import TEACHERS
from fewstep.features.attribute_classifier import AttributeClassifier
from fewstep.features.network import FeatureNetwork
from fewstep.methods import sdxs
from fewstep.sources.shapes import LABELS
from fewstep.students.learn import Task, learn
from fewstep.training.loop import advance, train
from fewstep.training.method import Rows
from fewstep.training.state import State
from tests.miniature import draw_triplets, import_miniature, prepare_images
from tests.mixtures import PATH, SHAPE, Mixture, Toy, toy_model

DATA = 0.5
"""Standard deviation of Gaussian data."""
RATES = {"learning_rate": 0.002, "decay": "constant", "betas": (0.0, 0.99), "clip": 10.0}
TRAINING = RATES | {"steps": 500, "batch_size": 8, "learning_rate": 0.005, "decay": "cosine"}
VALUES = {"method": "sdxs", "from": "teacher", "fake": RATES, "training": TRAINING}
GAN = {"optimizer": RATES}


@pytest.fixture(autouse=True)
def alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "no")
    monkeypatch.setenv("FEWSTEP_TRACKERS", "")
    monkeypatch.setenv("FEWSTEP_SAVE_EVERY_SECONDS", "3600")


def classifier_at(folder: Path) -> Path:
    AttributeClassifier(LABELS, widths=(8, 16), feature_dim=10).save(folder, 32, {})
    return folder


def config_of(**more: Any) -> sdxs.Config:
    return sdxs.Config.model_validate(VALUES | more)


class Pixels:
    """A feature network whose only map is the image."""

    def maps(self, x: Tensor) -> list[Tensor]:
        return [x]

    def to(self, device: torch.device) -> "Pixels":
        return self


@pytest.fixture
def pixels(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pixels for the chain's features."""
    network: FeatureNetwork = Pixels()  # type: ignore[assignment]
    monkeypatch.setattr(sdxs, "open_maps", lambda context: network)
    monkeypatch.setattr(sdxs, "map_widths", lambda network: [1])


def pairs_of(mixture: Mixture, positions: Any, bias: float = 1.0) -> TripletBatch:
    """Noise and end points of the teacher's ODE, times `bias`.

    A flow in one dimension keeps the order of its points, so it maps quantiles to quantiles.
    """
    eps = Key(0, "pairs").normal(positions, SHAPE)
    x = np.linspace(-4, 4, 4001)
    low, high = (norm.cdf(x, mean, mixture.deviation) for mean in (mixture.low, mixture.high))
    quantiles = mixture.share * low + (1 - mixture.share) * high
    x_0 = bias * np.interp(norm.cdf(eps.astype(np.float64)), quantiles, x)
    return TripletBatch(torch.from_numpy(x_0).float(), torch.from_numpy(eps), {})


def context_of(triplets: Callable[[Any], TripletBatch], teacher: Model) -> Any:
    """A method's inputs; images are the latents."""
    return SimpleNamespace(
        start=teacher,
        teacher=teacher,
        key=lambda use: Key(0, use),
        guidance_interval=None,
        triplet_batch=triplets,
        clean_batch=lambda positions: (triplets(positions).x_0, {}),
        backbone=SimpleNamespace(network=lambda net, inputs: net, decode=lambda z: z, decoder=nn.Identity),
    )


MIXTURES = pytest.mark.parametrize(
    "mixture", [Mixture(0.5, -1, 1, 0.3), Mixture(0.3, -0.8, 1, 0.35)], ids=["symmetric", "skewed"]
)


def distance_of(mixture: Mixture, bias: float = 1.0, **values: Any) -> tuple[float, float]:
    """`Mixture.distance` of the samples of a trained student."""
    torch.manual_seed(0)
    config, teacher = config_of(**values), toy_model(Toy(mixture).requires_grad_(False))
    made = sdxs.student_of(config, toy_model(deepcopy(teacher.net).requires_grad_(True)))
    context = context_of(lambda positions: pairs_of(mixture, positions, bias), teacher)
    train(sdxs.METHOD(config, context, made), "toy", 0, Path(tempfile.mkdtemp()))
    noise = torch.from_numpy(Key(1, "noise").normal(range(100), SHAPE))
    with torch.no_grad():
        x = made.denoiser(noise, torch.ones(len(noise)), {}).x_0
    return mixture.distance(x.flatten().numpy())


@MIXTURES
def test_a_student_finds_both_modes(pixels: None, mixture: Mixture) -> None:
    """A warm-up, then scores and feature matching."""
    distance, share = distance_of(mixture, warmup_steps=200, alpha=(1.0, 0.5))
    assert distance < 0.05 and abs(share) < 0.05


@MIXTURES
def test_the_scores_correct_what_the_warm_up_learned(pixels: None, mixture: Mixture) -> None:
    """From end points that are 0.8 times the right ones, as lambda_FM falls to 0."""
    end_points = pairs_of(mixture, range(100), bias=0.8).x_0
    assert mixture.distance(end_points.flatten().numpy())[0] > 0.15
    training = TRAINING | {"steps": 700}
    values = {"training": training, "warmup_steps": 200, "lambda_fm": (0.2, 0), "alpha": (1.0, 0.5)}
    distance, share = distance_of(mixture, bias=0.8, **values)
    assert distance < 0.05 and abs(share) < 0.05


class Gaussian(nn.Module):
    """x_0 of data `N(mean, deviation^2)`, both learnable."""

    def __init__(self, mean: float, deviation: float) -> None:
        super().__init__()
        self.mean = nn.Parameter(torch.tensor(mean))
        self.log_variance = nn.Parameter(torch.tensor(2 * np.log(deviation)).float())

    def forward(self, x: Tensor, time: Tensor, conditions: Conditions) -> Tensor:
        angle = (torch.pi / 2 * time / 1000).reshape(-1, 1, 1, 1)
        alpha, sigma, variance = torch.cos(angle), torch.sin(angle), self.log_variance.exp()
        return self.mean + alpha * variance / (alpha**2 * variance + sigma**2) * (x - alpha * self.mean)


class Affine(nn.Module):
    """One step `x_0 = k eps + b`."""

    def __init__(self) -> None:
        super().__init__()
        self.k, self.b = nn.Parameter(torch.tensor(0.2)), nn.Parameter(torch.tensor(0.8))

    def forward(self, x: Tensor, time: Tensor, conditions: Conditions) -> Tensor:
        return self.k * x + self.b


def learned(real: tuple[float, float], **more: Any) -> list[float]:
    """(k, b) of an affine student.

    The teacher's scores are those of N(0.3, DATA^2). Its end points are `real[0] eps + real[1]`.
    """

    def model(net: Any) -> Model:
        return Model("toy", net, Denoiser(net, PATH, Prediction.SAMPLE, PATH), None, TEACHERS)

    def triplets(positions: Any) -> TripletBatch:
        eps = torch.from_numpy(Key(0, "pairs").normal(positions, SHAPE))
        return TripletBatch(real[0] * eps + real[1], eps, {})

    teacher, student = model(Gaussian(0.3, DATA).requires_grad_(False)), model(Affine())
    rates = {"learning_rate": 0.03, "betas": (0.0, 0.99), "decay": "cosine"}
    values = {"fake": rates | {"decay": "constant"}, "training": rates | {"steps": 200, "batch_size": 4}}
    config = config_of(**values | more)
    train(
        sdxs.METHOD(config, context_of(triplets, teacher), sdxs.student_of(config, student)),
        "toy",
        0,
        Path(tempfile.mkdtemp()),
    )
    return [float(weight.detach()) for weight in (student.net.k, student.net.b)]  # type: ignore[operator]


def test_the_warm_up_learns_the_teachers_map(pixels: None) -> None:
    """Whatever the scores are: the single step after the warm-up changes next to nothing."""
    assert learned((0.7, -0.4), warmup_steps=199) == pytest.approx([0.7, -0.4], abs=0.02)


def test_the_scores_match_the_teachers_distribution() -> None:
    assert learned((0.7, -0.4), lambda_fm=(0, 0)) == pytest.approx([DATA, 0.3], abs=0.02)


def test_lambda_moves_the_student_from_the_scores_to_the_features(pixels: None) -> None:
    """End points that contradict the scores: the more weight, the nearer to them."""
    weights = (0.0, 0.3, 100.0)
    offsets = [learned((DATA, -0.4), lambda_fm=(weight, weight))[1] for weight in weights]
    assert offsets[0] == pytest.approx(0.3, abs=0.02)
    assert offsets[2] == pytest.approx(-0.4, abs=0.02)
    assert offsets[2] + 0.05 < offsets[1] < offsets[0] - 0.05


def test_the_discriminator_moves_the_student_to_the_real_images(pixels: None) -> None:
    """The scores alone would lead to an offset of 0.3, the real images have -0.4."""
    gan = {"optimizer": {"learning_rate": 0.01, "betas": (0.0, 0.99)}, "weight": 1.0}
    assert learned((DATA, -0.4), lambda_fm=(0, 0), gan=gan)[1] < 0.1


@pytest.mark.parametrize("loss", ["hinge", "wgan"])
def test_exactly_the_right_networks_move_at_each_step(pixels: None, loss: str) -> None:
    mixture = Mixture(0.5, -1, 1, 0.3)
    teacher = toy_model(Toy(mixture).requires_grad_(False))
    context = context_of(lambda positions: pairs_of(mixture, positions), teacher)
    more = {"warmup_steps": 2, "student_every": 2, "gan": GAN | {"from_step": 4, "loss": loss}}
    config = config_of(**more)
    made = sdxs.student_of(config, toy_model(deepcopy(teacher.net).requires_grad_(True)))
    method = sdxs.METHOD(config, context, made)
    state, frozen = State(method, Path("states")), deepcopy(teacher.net.state_dict())

    def weights() -> dict[str, list[Tensor]]:
        return {
            label: [w.detach().clone() for net in group.modules.values() for w in net.parameters()]
            for label, group in method.groups.items()
        }

    moved = []
    for _ in range(6):
        before = weights()
        advance(state, "toy", 0, 4)
        moved.append(
            {
                label
                for label, after in weights().items()
                if any(not torch.equal(a, b) for a, b in zip(before[label], after, strict=True))
            }
        )
    both, discriminator = {"fake", "student"}, {"fake", "discriminator"}
    assert moved == [{"student"}, {"student"}, both, {"fake"}, both | discriminator, discriminator]
    assert all(torch.equal(value, frozen[name]) for name, value in teacher.net.state_dict().items())
    largest = max(float(w.detach().abs().max()) for head in method.heads for w in head.parameters())
    assert (largest <= 0.01) == (loss == "wgan")


def test_losses_are_means_over_rows(pixels: None) -> None:
    """So a batch may be cut into micro-batches and over processes."""
    mixture = Mixture(0.5, -1, 1, 0.3)
    teacher = toy_model(Toy(mixture).requires_grad_(False))
    student = toy_model(deepcopy(teacher.net))
    context = context_of(lambda positions: pairs_of(mixture, positions), teacher)
    method = sdxs.METHOD(config_of(gan=GAN), context, student)

    def losses(rows: range) -> dict[str, Tensor]:
        batch = method.prepare(method.batch(Rows(7, rows)))
        by_group = {label: method.losses(label, batch, 7) for label in method.groups}
        return {f"{label} {name}": x.detach() for label, each in by_group.items() for name, x in each.items()}

    whole, halves = losses(range(6)), [losses(range(3)), losses(range(3, 6))]
    assert set(whole) == {
        "fake denoising",
        "student matching",
        "student features",
        "student adversarial",
        "discriminator critic",
    }
    for name, value in whole.items():
        assert float(sum(half[name] for half in halves) / 2) == pytest.approx(float(value), rel=1e-5), name


def test_a_low_rank_student_with_a_discriminator_starts_from_the_first() -> None:
    """The authors' last stage, on a miniature of Stable Diffusion."""
    prepare_images()
    backbone = import_miniature("sd")
    draw_triplets(backbone)
    torch.manual_seed(0)
    training = {"steps": 2, "batch_size": 2, "learning_rate": 0.01}
    rates = {"learning_rate": 0.01}
    first = {"method": "sdxs", "from": "teacher", "training": training, "fake": rates, "warmup_steps": 1}
    second = first | {"from": "one_step", "warmup_steps": 0, "lora": {"rank": 1, "alpha": 1.0}}
    for name, values in (("one_step", first), ("sharp", second | {"gan": {"optimizer": rates}})):
        config = sdxs.Config.model_validate(values)
        learn(
            Task(f"distill@{name}", name, "sdxs", config, [TRIPLETS / "0"], 0, features=classifier_at(JUDGE))
        )
    before, after = (open_model(MODELS / name, backbone).net.state_dict() for name in ("one_step", "sharp"))
    changes = [value - before[name] for name, value in after.items() if not torch.equal(value, before[name])]
    assert changes
    for change in changes:
        assert torch.linalg.matrix_rank(change.flatten(1).double(), rtol=1e-4) == 1
