"""A model's sampling: recorded in its manifest, and read by whatever draws with it."""

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from fewstep.artifacts.manifest import Manifest
from fewstep.backbones.model import open_model, save_model
from fewstep.config.base import validate
from fewstep.config.sampling import SamplingConfig
from fewstep.core.errors import UserError
from fewstep.core.keyed import Key
from fewstep.core.paths import MODELS, TEACHER
from fewstep.data.noise import fresh_noise, noise_of
from fewstep.diffusion.denoiser import Conditions, Denoise, Estimate, expand_like
from fewstep.diffusion.sampling import STUDENTS, TEACHERS, Guidance, Sampling
from fewstep.diffusion.schedules import Cosine, RectifiedFlow, Schedule
from fewstep.diffusion.solvers import Solver, solve, trailing
from fewstep.sampling.draw import Sampler
from fewstep.sampling.show import save_grid
from tests.miniature import import_miniature
from tests.pipelines import CAPTIONS

DATA = 0.5
"""Standard deviation of Gaussian data."""
RENOISED = Sampling(Solver.RENOISE, Guidance.BUILT_IN, {2: (1.0, 0.7, 0.0)})


@pytest.mark.parametrize("sampling", [TEACHERS, STUDENTS, RENOISED])
def test_a_record_survives_the_manifest(sampling: Sampling) -> None:
    assert Sampling.from_metadata(sampling.metadata) == sampling


def gaussian(path: Schedule, variance: float) -> Denoise:
    """x scaled to the data's variance: a perfect one-step sampler of Gaussian data."""

    def denoise(x: Tensor, t: Tensor, conditions: Conditions) -> Estimate:
        alpha, sigma = path.alpha_sigma(t)
        x_0 = expand_like(math.sqrt(variance) / (alpha**2 * variance + sigma**2).sqrt(), x) * x
        return Estimate(x_0, (x - expand_like(alpha, x) * x_0) / expand_like(sigma, x))

    return denoise


@pytest.mark.parametrize("path", [Cosine(), RectifiedFlow()], ids=["cosine", "rectified flow"])
@pytest.mark.parametrize("steps", [1, 2, 5])
def test_renoising_keeps_the_distribution_of_a_perfect_one_step_sampler(path: Schedule, steps: int) -> None:
    """Closed form: each prediction is `N(0, s^2)`, and each time t between takes the factor
    `alpha s / sqrt(alpha^2 s^2 + sigma^2)` of its correlation with the first noise.
    """
    n, shape, key = 20_000, (2,), Key(0, "renoised")
    noise = noise_of(key, range(n), shape)
    fresh = fresh_noise(key, range(n), shape, torch.device("cpu"))
    drawn = solve(
        Solver.RENOISE,
        gaussian(path, DATA**2),
        noise,
        trailing(steps),
        {},
        path,
        fresh,
    )
    # 5 standard errors of a standard deviation of 40,000 numbers.
    assert abs(float(drawn.std()) / DATA - 1) < 5 / math.sqrt(2 * 2 * n)
    alpha, sigma = path.alpha_sigma(torch.tensor(trailing(steps)[1:-1], dtype=torch.float64))
    expected = (alpha * DATA / (alpha**2 * DATA**2 + sigma**2).sqrt()).prod().item()
    correlation = float((drawn * noise).mean()) / DATA
    assert correlation == pytest.approx(expected, abs=5 / math.sqrt(2 * n))


def test_renoising_needs_fresh_noise() -> None:
    noise = torch.zeros(1, 2)
    with pytest.raises(ValueError, match="fresh noise"):
        solve(Solver.RENOISE, gaussian(Cosine(), 1.0), noise, trailing(2), {}, Cosine())


def test_fresh_noise_depends_on_step_and_image_alone() -> None:
    key, shape, cpu = Key(0, "a"), (3,), torch.device("cpu")
    all_, some = fresh_noise(key, range(10), shape, cpu), fresh_noise(key, [4, 7], shape, cpu)
    assert torch.equal(all_(1)[[4, 7]], some(1)) and not torch.equal(all_(0), all_(1))
    assert not torch.equal(all_(0), noise_of(key, range(10), shape))


def test_a_teacher_is_not_sampled_by_renoising() -> None:
    with pytest.raises(UserError, match=r"sampling\.solver = 'renoise': renoise solves no ODE"):
        validate(SamplingConfig, {"solver": "renoise"}, "sampling")


def test_everything_draws_by_the_models_own_record(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A student that is re-noised at times of its own, saved, opened and drawn; the teacher by the params."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "no")
    backbone = import_miniature("sd")
    teacher = open_model(TEACHER, backbone)
    assert teacher.sampling == TEACHERS
    flow = RectifiedFlow()
    student = replace(teacher, name="student", steps=2, sampling=RENOISED, denoiser=teacher.denoiser.on(flow))
    save_model(MODELS / "student", student, backbone, "direct", {"teacher": TEACHER})
    record = Manifest.open(MODELS / "student", "model").facts["sampling"]
    assert record == {"solver": "renoise", "guidance": "built_in", "times": {"2": [1.0, 0.7, 0.0]}}
    opened = open_model(MODELS / "student", backbone)
    assert opened.sampling == RENOISED

    key = Key(0, "sample")
    noise = noise_of(key, range(2), backbone.latent_shape)
    fresh = fresh_noise(key, range(2), backbone.latent_shape, torch.device("cpu"))
    with torch.no_grad():
        conditions = backbone.encode_prompts([CAPTIONS[0]] * 2)
        t = torch.full((2,), 0.7)
        first = opened.denoiser(noise.double(), torch.ones(2), conditions).x_0
        again = 0.3 * first + 0.7 * fresh(0)
        expected = opened.denoiser(again, t, conditions).x_0.float()
    sampler = Sampler(opened, backbone, SamplingConfig(guidance=5.0))
    torch.testing.assert_close(sampler.latents(conditions, noise, 2, fresh), expected, atol=1e-4, rtol=1e-4)
    assert sampler.guidance is None and sampler.evaluations(2) == 2
    save_grid(MODELS / "student", [CAPTIONS[0]], tmp_path / "grid.png", count=2)
    assert (tmp_path / "grid.png").stat().st_size > 0
