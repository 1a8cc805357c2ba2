"""Steps that know where they end: flow maps, a second time as an input, times of each sample."""

import math
from pathlib import Path
from typing import ClassVar

import pytest
import torch
from torch import Tensor

from fewstep.backbones.model import Model, open_model, save_model
from fewstep.backbones.pipeline import DiffusersBackbone
from fewstep.config.sampling import SamplingConfig
from fewstep.config.training import StudentTrainingConfig
from fewstep.core.errors import UserError
from fewstep.core.paths import MODELS, TEACHER
from fewstep.diffusion.denoiser import (
    END_TIME,
    GUIDANCE,
    Conditions,
    Denoise,
    Denoiser,
    Estimate,
    Prediction,
    expand_like,
    guided,
)
from fewstep.diffusion.schedules import Cosine, RectifiedFlow, Schedule
from fewstep.diffusion.solvers import Solver, asked, at, solve
from fewstep.export.pipeline import without_end_time
from fewstep.export.sampling import stock_sampling
from fewstep.methods import reflow
from fewstep.sampling.draw import Sampler
from fewstep.students.start import start_and_student
from tests.miniature import import_miniature
from tests.pipelines import CAPTIONS

DATA = 0.5
"""Standard deviation of Gaussian data."""
TRAINING = StudentTrainingConfig(steps=2, batch_size=4, learning_rate=0.02)


def deviation(path: Schedule, t: Tensor) -> Tensor:
    """Of x_t."""
    alpha, sigma = path.alpha_sigma(t)
    return (alpha**2 * DATA**2 + sigma**2).sqrt()


def denoiser(path: Schedule) -> Denoise:
    """The exact one of Gaussian data: `x_0 = alpha s^2 / (alpha^2 s^2 + sigma^2) x_t`."""

    def denoise(x: Tensor, t: Tensor, conditions: Conditions) -> Estimate:
        alpha, sigma = path.alpha_sigma(t)
        x_0 = expand_like(alpha * DATA**2 / deviation(path, t) ** 2, x) * x
        return Estimate(x_0, (x - expand_like(alpha, x) * x_0) / expand_like(sigma, x))

    return denoise


def flow_map(path: Schedule) -> Denoise:
    """The exact one: the (x_0, eps) on the line from x_t to `x_s = x_t deviation(s) / deviation(t)`."""

    def denoise(x: Tensor, t: Tensor, conditions: Conditions) -> Estimate:
        s = conditions[END_TIME]
        (a_t, s_t), (a_s, s_s) = path.alpha_sigma(t), path.alpha_sigma(s)
        x_s = expand_like(deviation(path, s) / deviation(path, t), x) * x
        determinant = a_t * s_s - a_s * s_t
        x_0 = expand_like(s_s / determinant, x) * x - expand_like(s_t / determinant, x) * x_s
        eps = expand_like(a_t / determinant, x) * x_s - expand_like(a_s / determinant, x) * x
        return Estimate(x_0, eps)

    return denoise


@pytest.mark.parametrize("path", [Cosine(), RectifiedFlow()], ids=["cosine", "rectified flow"])
@pytest.mark.parametrize("times", [(1.0, 0.0), (1.0, 0.4, 0.0), (1.0, 0.9, 0.3, 0.2, 0.0)])
def test_a_flow_map_lands_at_the_odes_end_in_any_number_of_steps(
    path: Schedule, times: tuple[float, ...]
) -> None:
    noise = torch.randn(5, 3, generator=torch.Generator().manual_seed(0))
    ends = solve(Solver.DDIM, flow_map(path), noise, times, {}, path)
    torch.testing.assert_close(ends, DATA * noise, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("solver", list(Solver))
def test_times_of_each_sample_are_those_of_a_sample_alone(solver: Solver) -> None:
    path, key = Cosine(), torch.Generator().manual_seed(0)
    noise, fresh = (torch.randn(3, 2, generator=key) for _ in range(2))
    grids = [(1.0, 0.7, 0.2, 0.0), (1.0, 0.5, 0.4, 0.0), (1.0, 0.9, 0.0, 0.0)]
    if solver is not Solver.RENOISE:  # an ODE's steps have a length
        grids[2] = (1.0, 0.9, 0.1, 0.0)
    times = [torch.tensor(each) for each in zip(*grids, strict=True)]
    together = solve(solver, denoiser(path), noise, times, {}, path, lambda i: fresh + i)
    for i, grid in enumerate(grids):
        one, noise_of_sample = slice(i, i + 1), fresh[i : i + 1]
        alone = solve(
            solver,
            denoiser(path),
            noise[one],
            grid,
            {},
            path,
            [noise_of_sample, noise_of_sample + 1].__getitem__,
        )
        torch.testing.assert_close(together[one], alone, atol=1e-6, rtol=1e-6)


def test_the_network_receives_the_end_in_its_own_time() -> None:
    received: list[Tensor] = []

    def network(x: Tensor, time: Tensor, conditions: Conditions) -> Tensor:
        received.append(conditions.get(END_TIME, torch.tensor(math.nan)))
        return x

    cosine, flow = Cosine(), RectifiedFlow()
    x, t, s = torch.ones(1, 2), torch.tensor([0.9]), torch.tensor([0.5])
    on_its_schedule = Denoiser(network, cosine, Prediction.V, cosine, (END_TIME,))
    for each in (on_its_schedule, on_its_schedule.on(flow), Denoiser(network, cosine, Prediction.V, cosine)):
        asked(each, x, t, s, {})
    # On the rectified flow alpha = sigma at 0.5, as on the cosine path.
    assert received[0].item() == pytest.approx(500) and received[1].item() == pytest.approx(500, abs=1e-3)
    assert math.isnan(received[2].item()), "a network that does not take it never sees it"


def test_both_sides_of_guidance_end_where_the_step_does() -> None:
    received: list[Tensor] = []

    def denoise(x: Tensor, t: Tensor, conditions: Conditions) -> Estimate:
        received.append(conditions[END_TIME])
        return Estimate(x, x)

    run = guided(denoise, {"text": torch.zeros(1, 2)}, 3.0)
    asked(run, torch.ones(2, 1), at(1.0, torch.ones(2)), torch.tensor([0.2, 0.4]), {"text": torch.ones(2, 2)})
    assert received[0].tolist() == pytest.approx([0.2, 0.4, 0.2, 0.4])


class FlowMapConfig(reflow.Config):
    """Of a method whose student takes the end of its step."""

    takes: ClassVar = (END_TIME,)


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "no")


def asked_for(model: Model, end: float, guidance: float) -> Tensor:
    """The estimate of the model's network at t = 0.8, for a step that ends there."""
    x = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(1))
    conditions = PROMPTS | {GUIDANCE: torch.full((2,), guidance)}
    with torch.no_grad():
        return asked(model.denoiser, x, at(0.8, x), at(end, x), conditions).x_0


PROMPTS: Conditions = {}


@pytest.mark.usefixtures("project")
@pytest.mark.parametrize("family", ["sd", "sdxl"])
def test_a_network_learns_to_depend_on_the_end_of_a_step_and_keeps_its_guidance(family: str) -> None:
    backbone = import_miniature(family)
    with torch.no_grad():
        PROMPTS.update(backbone.encode_prompts(CAPTIONS[:2]))
    start = open_model(TEACHER, backbone)
    settings = {"from": "teacher", "training": TRAINING}
    _, guided_one = start_and_student(
        start, "a", backbone, reflow.Config.model_validate(settings | {"guidance_embedding": True}), 0
    )
    projection = guided_one.net.get_parameter("time_embedding.cond_proj.weight")
    torch.nn.init.normal_(projection.detach(), generator=torch.Generator().manual_seed(2))
    _, both = start_and_student(guided_one, "b", backbone, FlowMapConfig.model_validate(settings), 0)
    assert both.denoiser.inputs == (GUIDANCE, END_TIME) and both.takes_guidance
    for guidance in (1.0, 6.0):
        torch.testing.assert_close(asked_for(both, 0.3, guidance), asked_for(guided_one, 0.3, guidance))
    assert not torch.equal(asked_for(both, 0.3, 1.0), asked_for(both, 0.3, 6.0))
    assert torch.equal(asked_for(both, 0.3, 1.0), asked_for(both, 0.6, 1.0)), "no effect yet"

    wider = both.net.get_parameter("time_embedding.cond_proj.weight")
    torch.nn.init.normal_(wider.detach(), generator=torch.Generator().manual_seed(3))
    save_model(MODELS / "b", both, backbone, "reflow", {"teacher": TEACHER})
    opened = open_model(MODELS / "b", backbone)
    assert opened.denoiser.inputs == (GUIDANCE, END_TIME)
    assert torch.equal(asked_for(opened, 0.3, 2.0), asked_for(both, 0.3, 2.0))
    assert not torch.equal(asked_for(opened, 0.3, 2.0), asked_for(opened, 0.6, 2.0))

    noise = torch.randn(2, *backbone.latent_shape, generator=torch.Generator().manual_seed(1))
    sampler = Sampler(opened, backbone, SamplingConfig(guidance=2.0))
    assert not torch.equal(sampler.latents(PROMPTS, noise, 1), sampler.latents(PROMPTS, noise, 2))
    with pytest.raises(UserError, match=r"export\.b: no diffusers pipeline passes its network the end"):
        stock_sampling("b", opened.denoiser, opened.sampling, 1, {})
    assert isinstance(backbone, DiffusersBackbone)
    one_step = without_end_time(opened, backbone)
    assert one_step.denoiser.inputs == (GUIDANCE,)
    for guidance in (1.0, 6.0):
        torch.testing.assert_close(asked_for(one_step, 0.3, guidance), asked_for(opened, 0.0, guidance))


@pytest.mark.usefixtures("project")
def test_a_family_without_a_place_for_a_second_time_is_refused() -> None:
    backbone = import_miniature("pixart")
    config = FlowMapConfig.model_validate({"from": "teacher", "training": TRAINING})
    with pytest.raises(UserError, match="end_time: a PixArtTransformer2DModel has no place for it"):
        start_and_student(open_model(TEACHER, backbone), "new", backbone, config, 0)
