"""Steps that know where they end: flow maps, a second time as an input, times of each sample."""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import pytest
import torch
from torch import Tensor

from fewstep.backbones.inputs import projection_of, takes_inputs
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
from fewstep.export.pipeline import at_guidance, without_end_time
from fewstep.export.sampling import stock_sampling
from fewstep.methods import reflow
from fewstep.sampling.draw import Sampler
from fewstep.students.start import start_and_student
from tests.miniature import import_miniature
from tests.pipelines import CAPTIONS, MAKERS

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


@dataclass
class Family:
    """A teacher of the family and its conditions for two prompts."""

    backbone: DiffusersBackbone
    prompts: Conditions

    def x_0(self, model: Model, end: float, guidance: float) -> Tensor:
        """The estimate of the model's network at t = 0.8, for a step that ends at `end`."""
        x = torch.randn(2, *self.backbone.latent_shape, generator=torch.Generator().manual_seed(1))
        conditions = self.prompts | {GUIDANCE: torch.full((2,), guidance)}
        with torch.no_grad():
            return asked(model.denoiser, x, at(0.8, x), at(end, x), conditions).x_0


@pytest.fixture(params=MAKERS)
def family(request: pytest.FixtureRequest, project: None) -> Family:
    backbone = import_miniature(request.param)
    assert isinstance(backbone, DiffusersBackbone)
    with torch.no_grad():
        return Family(backbone, backbone.encode_prompts(CAPTIONS[:2]))


def with_both_inputs(family: Family) -> Model:
    """A model that takes guidance and the end of a step, and depends on both."""
    start = open_model(TEACHER, family.backbone)
    settings = {"from": "teacher", "training": TRAINING}
    embeds = reflow.Config.model_validate(settings | {"guidance_embedding": True})
    _, guided_one = start_and_student(start, "a", family.backbone, embeds, 0)
    randomize(guided_one, 2)
    takes_ends = FlowMapConfig.model_validate(settings)
    _, both = start_and_student(guided_one, "b", family.backbone, takes_ends, 0)
    assert both.denoiser.inputs == (GUIDANCE, END_TIME) and both.takes_guidance
    for guidance in (1.0, 6.0):
        assert_close(family.x_0(both, 0.3, guidance), family.x_0(guided_one, 0.3, guidance))
    assert not torch.equal(family.x_0(both, 0.3, 1.0), family.x_0(both, 0.3, 6.0))
    assert torch.equal(family.x_0(both, 0.3, 1.0), family.x_0(both, 0.6, 1.0)), "no effect yet"
    randomize(both, 3)
    assert not torch.equal(family.x_0(both, 0.3, 1.0), family.x_0(both, 0.6, 1.0))
    return both


def randomize(model: Model, seed: int) -> None:
    """Random weights for the projection of its inputs."""
    torch.nn.init.normal_(projection_of(model.net), std=0.1, generator=torch.Generator().manual_seed(seed))


def assert_close(actual: Tensor, expected: Tensor) -> None:
    """Equal to rounding."""
    torch.testing.assert_close(actual, expected, atol=1e-4 * float(expected.abs().max()), rtol=0)


def test_a_network_of_every_family_takes_guidance_and_the_end_of_a_step(family: Family) -> None:
    both = with_both_inputs(family)
    save_model(MODELS / "b", both, family.backbone, "reflow", {"teacher": TEACHER})
    opened = open_model(MODELS / "b", family.backbone)
    assert opened.denoiser.inputs == (GUIDANCE, END_TIME)
    for end, guidance in ((0.3, 2.0), (0.6, 2.0), (0.3, 5.0)):
        assert torch.equal(family.x_0(opened, end, guidance), family.x_0(both, end, guidance))

    noise = torch.randn(2, *family.backbone.latent_shape, generator=torch.Generator().manual_seed(1))
    sampler = Sampler(opened, family.backbone, SamplingConfig(guidance=2.0))
    drawn = [sampler.latents(family.prompts, noise, steps) for steps in (1, 2)]
    assert not torch.equal(*drawn)
    with pytest.raises(UserError, match=r"export\.b: no diffusers pipeline passes its network the end"):
        stock_sampling("b", opened.denoiser, opened.sampling, 1, {})


def test_an_input_that_becomes_a_constant_leaves_the_others(family: Family) -> None:
    both = with_both_inputs(family)
    weights = {name: value.clone() for name, value in both.net.state_dict().items()}
    one_step, at_3 = without_end_time(both, family.backbone), at_guidance(both, family.backbone, 3.0)
    assert one_step.denoiser.inputs == (GUIDANCE,) and at_3.denoiser.inputs == (END_TIME,)
    assert one_step.takes_guidance and not at_3.takes_guidance
    for value in (1.0, 6.0):
        assert_close(family.x_0(one_step, 0.3, value), family.x_0(both, 0.0, value))
    for end in (0.3, 0.6):
        assert_close(family.x_0(at_3, end, 6.0), family.x_0(both, end, 3.0))
    neither = without_end_time(at_3, family.backbone)
    assert_close(family.x_0(neither, 0.3, 6.0), family.x_0(both, 0.0, 3.0))
    assert neither.net.state_dict().keys() == family.backbone.net.state_dict().keys()
    assert neither.net.config == family.backbone.net.config
    for name, value in both.net.state_dict().items():
        assert torch.equal(value, weights[name]), "the model is as before"


def test_a_stock_class_without_inputs_reads_the_rest_of_a_stored_network(family: Family) -> None:
    """Inputs that the class does not store are in a file of their own."""
    both = with_both_inputs(family)
    folder = MODELS / "net"
    family.backbone.save_net(both.net, folder)
    stock, report = type(both.net).from_pretrained(folder, output_loading_info=True)  # type: ignore[attr-defined]
    assert not any(report.values())
    own = {*both.net.state_dict()} - {*stock.state_dict()}
    assert takes_inputs(both.net) == (not own)
    assert {name.rpartition(".cond_proj.")[2] for name in own} <= {"weight"}
