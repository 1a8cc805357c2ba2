"""A path that is noisier than its network's schedule: the network is asked at its own last time.

Stable Diffusion's table ends before the rectified flow does, at t = 0.936.
"""

import math

import pytest
import torch
from torch import Tensor, nn

from fewstep.backbones.custom import CustomModel
from fewstep.backbones.model import Model
from fewstep.config.sampling import SamplingConfig
from fewstep.diffusion.denoiser import (
    Conditions,
    Denoise,
    Denoiser,
    Estimate,
    Prediction,
    clipped,
    expand_like,
    guided,
)
from fewstep.diffusion.halving import halving_target
from fewstep.diffusion.sampling import STUDENTS, TEACHERS, Sampling
from fewstep.diffusion.schedules import RectifiedFlow, Schedule
from fewstep.diffusion.solvers import Solver, at, ddim, ddim_step, solve, straightness, trailing
from fewstep.sampling.draw import Sampler
from tests.schedules import STABLE_DIFFUSION

FLOW = RectifiedFlow()
TIMES = [1.0, 0.97, 0.9, 0.3]
"""The first two lie beyond the table."""
BOUND = 0.7
FREE = {"text": torch.zeros(1, 3, dtype=torch.float64)}


def noise(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def network(x: Tensor, time: Tensor, conditions: Conditions) -> Tensor:
    """Some smooth function of all its inputs."""
    return torch.sin(1.3 * x + expand_like(time, x) / 400 + conditions.get("text", torch.zeros(1)).float())


class Text(CustomModel):
    """A model whose prompts are tensors already."""

    def unconditional(self, negative_prompt: str = "") -> Conditions:
        return FREE

    def call(self, net: nn.Module, x: Tensor, time: Tensor, conditions: Conditions) -> Tensor:
        return network(x, time, conditions)


def teacher(prediction: Prediction, path: Schedule = FLOW) -> Denoiser:
    return Denoiser(network, STABLE_DIFFUSION, prediction, path)


def own_sum(denoiser: Denoiser, estimate: Estimate, t: Tensor) -> Tensor:
    """What the estimate adds up to at the point at which the network was asked."""
    alpha, sigma = (expand_like(c, estimate.x_0) for c in denoiser.own_alpha_sigma(t))
    return alpha * estimate.x_0 + sigma * estimate.eps


def compositions(denoiser: Denoiser) -> list[tuple[Denoise, Conditions]]:
    """Alone, and with guidance as the teacher is asked."""
    return [(denoiser, {}), (guided(denoiser, FREE, 4.0), {"text": torch.ones(8, 3, dtype=torch.float64)})]


@pytest.mark.parametrize("prediction", [Prediction.EPSILON, Prediction.V])
def test_the_networks_own_point_is_the_paths_where_the_table_reaches(prediction: Prediction) -> None:
    denoiser = teacher(prediction)
    for time in TIMES:
        t = at(time, noise(8, 3))
        schedule, path = denoiser.own_alpha_sigma(t), FLOW.alpha_sigma(t)
        inside = time < FLOW.time_at(STABLE_DIFFUSION.angle(torch.ones(1)))
        ratio, expected = schedule[0] / schedule[1], path[0] / path[1]
        assert torch.allclose(ratio, expected, rtol=1e-9) == bool(inside)
        assert torch.allclose(torch.hypot(*schedule), torch.ones(8, dtype=torch.float64))


@pytest.mark.parametrize("prediction", [Prediction.EPSILON, Prediction.V])
@pytest.mark.parametrize("time", TIMES)
def test_a_point_beyond_the_table_is_taken_for_one_of_the_path(prediction: Prediction, time: float) -> None:
    """With the same estimate, which adds up to it."""
    denoiser, x = teacher(prediction), noise(8, 3)
    t = at(time, x)
    moved, reached = denoiser.onto_schedule(x, t)
    assert (reached == min(time, denoiser.last_time)).all() and denoiser.last_time == pytest.approx(
        0.936, abs=1e-3
    )
    if time < denoiser.last_time:
        assert torch.equal(moved, x)
    for estimate, expected in zip(denoiser(moved, reached, {}), denoiser(x, t, {}), strict=True):
        torch.testing.assert_close(estimate, expected, atol=1e-5, rtol=1e-5)
    (alpha, sigma), (x_0, eps) = FLOW.alpha_sigma(reached), denoiser(moved, reached, {})
    torch.testing.assert_close(expand_like(alpha, x) * x_0 + expand_like(sigma, x) * eps, moved)


@pytest.mark.parametrize("prediction", [Prediction.EPSILON, Prediction.V])
@pytest.mark.parametrize("time", TIMES)
def test_a_bound_that_nothing_reaches_changes_nothing(prediction: Prediction, time: float) -> None:
    denoiser, x = teacher(prediction), noise(8, 3)
    for denoise, conditions in compositions(denoiser):
        free = denoise(x, at(time, x), conditions)
        for bound in (math.inf, 1e6):
            kept = clipped(denoise, denoiser, bound)(x, at(time, x), conditions)
            assert torch.equal(kept.x_0, free.x_0) and torch.equal(kept.eps, free.eps)


@pytest.mark.parametrize("prediction", [Prediction.EPSILON, Prediction.V])
@pytest.mark.parametrize("time", TIMES)
def test_a_clipped_estimate_adds_up_to_what_the_network_was_asked(
    prediction: Prediction, time: float
) -> None:
    denoiser, x = teacher(prediction), noise(8, 3)
    t = at(time, x)
    for denoise, conditions in compositions(denoiser):
        free, bounded = denoise(x, t, conditions), clipped(denoise, denoiser, BOUND)(x, t, conditions)
        outside = free.x_0.abs() > BOUND
        assert outside.any() and bounded.x_0.abs().max() == BOUND
        assert torch.equal(bounded.eps[~outside], free.eps[~outside])
        for estimate in (free, bounded):
            torch.testing.assert_close(own_sum(denoiser, estimate, t), denoiser.own_x(x, t))


def test_at_pure_data_clipping_leaves_the_noise_alone() -> None:
    denoiser, x = Denoiser(network, STABLE_DIFFUSION, Prediction.V, STABLE_DIFFUSION), noise(8, 3)
    free, bounded = (denoise(x, at(0.0, x), {}) for denoise in (denoiser, clipped(denoiser, denoiser, BOUND)))
    assert bounded.x_0.abs().max() == BOUND and torch.equal(bounded.eps, free.eps)


@pytest.mark.parametrize("sampling", [TEACHERS, STUDENTS], ids=["teacher", "student"])
def test_a_sampler_with_an_infinite_bound_draws_as_one_without(sampling: Sampling) -> None:
    """The teacher on its table with guidance, a student on the straight path."""
    net = nn.Identity()
    backbone = Text(net, (3,), STABLE_DIFFUSION, Prediction.V)
    denoiser = Denoiser(
        backbone.network(net),
        STABLE_DIFFUSION,
        Prediction.V,
        STABLE_DIFFUSION if sampling is TEACHERS else FLOW,
    )
    sampler = Sampler(Model("model", net, denoiser, None, sampling), backbone, SamplingConfig(guidance=4.0))
    conditions, eps = {"text": torch.ones(8, 3, dtype=torch.float64)}, noise(8, 3)
    for steps in (1, 4):
        plain, bounded, tight = (
            Sampler(sampler.model, backbone, sampler.sampling, clip).latents(conditions, eps, steps)
            for clip in (None, math.inf, BOUND)
        )
        assert torch.equal(plain, bounded) and not torch.equal(plain, tight)


@pytest.mark.parametrize("steps", [1, 2, 4, 20])
def test_a_student_that_predicts_the_target_lands_where_two_steps_do(steps: int) -> None:
    """With eps taken from the path, its first of two steps misses by 0.03 x_0."""
    start, x = teacher(Prediction.V), noise(8, 3)
    for i in {steps - 1, steps // 2}:
        index = torch.full((8,), float(i), dtype=torch.float64)
        target = halving_target(start, x, index, steps, {}, start)
        student = Denoiser(lambda *_, raw=target: raw, STABLE_DIFFUSION, Prediction.SAMPLE, FLOW)
        t, middle, end = (i + 1) / steps, (i + 0.5) / steps, i / steps
        landed = ddim_step(student(x, at(t, x), {}), FLOW, at(end, x))
        torch.testing.assert_close(landed, ddim(start, x, [t, middle, end], {}, FLOW), atol=1e-9, rtol=1e-6)


def test_the_straight_flow_of_a_table_is_straight() -> None:
    """Each noise leads to one x_0, on a line through the point at which the network is asked first."""

    def straight(x: Tensor, time: Tensor, conditions: Conditions) -> Tensor:
        """x_0 = x_T / 2, from `x = alpha x_0 + sigma eps` and `x_T = a x_0 + s eps` at the table's end."""
        alpha, sigma = STABLE_DIFFUSION.alpha_sigma((time.double() + 1) / 1000)
        a, s = STABLE_DIFFUSION.alpha_sigma(torch.ones(1))
        return expand_like(1 / (alpha + sigma * (2 - a) / s), x.double()) * x

    denoiser, eps = Denoiser(straight, STABLE_DIFFUSION, Prediction.SAMPLE, FLOW), noise(64, 3)
    for steps in (1, 4, 15):  # with more, others than the first lie beyond the table
        drawn = solve(Solver.DDIM, denoiser, eps, trailing(steps), {}, FLOW)
        torch.testing.assert_close(drawn, 0.5 * eps.float(), atol=1e-5, rtol=1e-5)
    assert straightness(denoiser, eps, {}, FLOW, steps=15).max() < 1e-9
    assert straightness(teacher(Prediction.V), eps, {}, FLOW, steps=15).min() > 1e-3
