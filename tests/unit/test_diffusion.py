"""The mathematics against closed forms."""

import math

import pytest
import torch
from torch import Tensor

from fewstep.diffusion.denoiser import (
    Conditions,
    Denoiser,
    Estimate,
    Prediction,
    clipped,
    expand_like,
    from_estimate,
    guided,
    to_estimate,
)
from fewstep.diffusion.halving import halving_target, snr_plus_one, truncated_snr
from fewstep.diffusion.schedules import (
    Cosine,
    DiscreteVP,
    RectifiedFlow,
    Schedule,
    schedule_from_metadata,
    schedule_metadata,
)
from fewstep.diffusion.solvers import ODE_SOLVERS, Solver, at, ddim, ddim_step, solve, straightness, trailing
from fewstep.diffusion.times import Times, times_from
from tests.schedules import STABLE_DIFFUSION

ZERO_TERMINAL = DiscreteVP((0.99, 0.7, 0.2, 0.0))
SCHEDULES = [RectifiedFlow(), Cosine(), STABLE_DIFFUSION, ZERO_TERMINAL]
INSIDE = torch.linspace(0.002, 0.998, 301, dtype=torch.float64)
SIGMA_DATA = 0.5


def double(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def gaussian(path: Schedule) -> Denoiser:
    """The optimal denoiser of N(0, SIGMA_DATA^2): it predicts x_0 and is linear in x."""

    class Exact(Denoiser):
        def __call__(self, x: Tensor, t: Tensor, conditions: Conditions) -> Estimate:
            alpha, sigma = self.path.alpha_sigma(t)
            variance = alpha.square() * SIGMA_DATA**2 + sigma.square()
            x_0 = expand_like(alpha * SIGMA_DATA**2 / variance, x) * x
            return Estimate(x_0, expand_like(sigma / variance, x) * x)

    return Exact(lambda x, t, c: x, path, Prediction.SAMPLE, path)


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_schedules_invert_and_lose_signal_monotonically(schedule: Schedule) -> None:
    assert torch.allclose(schedule.time_at(schedule.angle(INSIDE)), INSIDE, atol=1e-12)
    assert (schedule.log_snr(INSIDE).diff() < 0).all()
    alpha, sigma = schedule.alpha_sigma(INSIDE)
    assert alpha.dtype == torch.float64
    assert torch.allclose(torch.hypot(alpha, sigma), schedule.scale(INSIDE), atol=1e-12)
    assert schedule_from_metadata(schedule_metadata(schedule)) == schedule


def test_discrete_schedule_meets_its_table_and_the_flow_range_of_stable_diffusion() -> None:
    table = torch.tensor(STABLE_DIFFUSION.alphas_cumprod, dtype=torch.float64)
    k = torch.arange(1000, dtype=torch.float64)
    alpha, _ = STABLE_DIFFUSION.alpha_sigma((k + 1) / 1000)
    assert torch.allclose(alpha.square(), table, atol=1e-12)
    assert torch.allclose(STABLE_DIFFUSION.network_time((k + 1) / 1000), k, atol=1e-9)
    ends = STABLE_DIFFUSION.angle(torch.tensor([0.001, 1.0], dtype=torch.float64))
    assert RectifiedFlow().time_at(ends).tolist() == pytest.approx([0.0283, 0.9360], abs=1e-4)


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("prediction", Prediction)
def test_every_prediction_round_trips_on_every_schedule(schedule: Schedule, prediction: Prediction) -> None:
    truth = Estimate(double(301, 3), double(301, 3, seed=1))
    alpha, sigma = schedule.alpha_sigma(INSIDE)
    x_t = expand_like(alpha, truth.x_0) * truth.x_0 + expand_like(sigma, truth.eps) * truth.eps
    raw = from_estimate(truth, alpha, sigma, prediction)
    estimate = to_estimate(raw, x_t, alpha, sigma, prediction)
    assert torch.allclose(estimate.x_0, truth.x_0, atol=1e-9)
    assert torch.allclose(estimate.eps, truth.eps, atol=1e-9)
    assert torch.allclose(estimate.velocity, truth.eps - truth.x_0, atol=1e-9)


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("prediction", Prediction)
def test_the_exact_output_means_the_x_0(schedule: Schedule, prediction: Prediction) -> None:
    """On the network's own path it is made of x_0 and the noise; on the straight one also beyond its end."""
    x_0, eps = double(301, 3), double(301, 3, seed=1)
    for path in (schedule, RectifiedFlow()):
        denoiser = Denoiser(network, schedule, prediction, path)
        alpha, sigma = path.alpha_sigma(INSIDE)
        x_t = expand_like(alpha, x_0) * x_0 + expand_like(sigma, eps) * eps
        target = denoiser.exact(x_0, x_t, INSIDE)
        own = denoiser.own_alpha_sigma(INSIDE)
        estimate = to_estimate(target, denoiser.own_x(x_t, INSIDE), *own, prediction)
        assert torch.allclose(estimate.x_0, x_0, atol=1e-8)
        if path == schedule:
            made = from_estimate(Estimate(x_0, eps), alpha, sigma, prediction)
            assert torch.allclose(target, made, atol=1e-8)


@pytest.mark.parametrize("path", [RectifiedFlow(), Cosine()])
def test_ddim_converges_at_first_order_to_the_exact_ode(path: Schedule) -> None:
    noise = double(64, 1)
    errors = [
        (ddim(gaussian(path), noise, trailing(n), {}, path) - SIGMA_DATA * noise).abs().max()
        for n in (64, 128)
    ]
    assert errors[0] < 0.05
    assert errors[0] / errors[1] == pytest.approx(2.0, rel=0.1)


def test_dpm_solver_beats_ddim_by_an_order() -> None:
    noise = double(64, 1)
    exact = (SIGMA_DATA * noise).float()
    error = {
        (solver, n): (solve(solver, gaussian(Cosine()), noise, trailing(n), {}, Cosine()) - exact).abs().max()
        for solver in ODE_SOLVERS
        for n in (16, 64, 256)
    }
    assert error[Solver.DPM_SOLVER_PP_2M, 16] < error[Solver.DDIM, 16] / 5
    assert error[Solver.DDIM, 64] / error[Solver.DDIM, 256] == pytest.approx(4, rel=0.1)
    assert error[Solver.DPM_SOLVER_PP_2M, 64] / error[Solver.DPM_SOLVER_PP_2M, 256] > 7


def test_ddim_is_euler_on_the_rectified_flow() -> None:
    x, t, s = (
        double(5, 2),
        torch.full((5,), 0.7, dtype=torch.float64),
        torch.full((5,), 0.4, dtype=torch.float64),
    )
    estimate = gaussian(RectifiedFlow())(x, t, {})
    assert torch.allclose(
        ddim_step(estimate, RectifiedFlow(), s), x + (0.4 - 0.7) * estimate.velocity, atol=1e-12
    )


def network(x: Tensor, time: Tensor, conditions: Conditions) -> Tensor:
    """Some smooth float64 function of its inputs, standing for a trained network."""
    return torch.sin(x * 1.3 + expand_like(time.double(), x.double()) / 400) * 0.7


class Double(Denoiser):
    """A denoiser whose network sees float64, to compare paths beyond float32."""

    def __call__(self, x: Tensor, t: Tensor, conditions: Conditions) -> Estimate:
        own_t = self.schedule.time_at(self.path.angle(t.double()))
        own_x = x * expand_like(self.schedule.scale(own_t) / self.path.scale(t), x)
        raw = self.network(own_x, self.schedule.network_time(own_t), conditions)
        return to_estimate(raw, own_x, *self.schedule.alpha_sigma(own_t), self.prediction)


@pytest.mark.parametrize("prediction", [Prediction.EPSILON, Prediction.V])
def test_exact_initialisation_follows_the_teachers_ode_path(prediction: Prediction) -> None:
    """The VP teacher read as a flow visits the same points, rescaled, at times of equal signal-to-noise."""
    vp, flow = STABLE_DIFFUSION, RectifiedFlow()
    teacher = Denoiser(network, vp, prediction, vp)
    vp_times = torch.linspace(1.0, 0.02, 40, dtype=torch.float64)
    flow_times = flow.time_at(vp.angle(vp_times))
    x_vp = double(8, 4).float().double()
    x_flow = x_vp * flow.scale(flow_times[0])
    end_vp = ddim(teacher, x_vp, vp_times.tolist(), {}, vp)
    end_flow = ddim(teacher.on(flow), x_flow, flow_times.tolist(), {}, flow)
    assert torch.allclose(end_flow / flow.scale(flow_times[-1]), end_vp, atol=1e-5)


def test_beyond_its_noisiest_time_a_teacher_is_clamped_and_stays_finite() -> None:
    teacher = Denoiser(network, STABLE_DIFFUSION, Prediction.EPSILON, RectifiedFlow())
    x = double(4, 3)
    estimate = teacher(x, at(1.0, x), {})
    assert estimate.velocity.isfinite().all()
    clamped = Denoiser(network, STABLE_DIFFUSION, Prediction.EPSILON, STABLE_DIFFUSION)(x, at(1.0, x), {})
    assert torch.allclose(estimate.eps - estimate.x_0, clamped.eps - clamped.x_0, atol=1e-5)


def test_guidance_extrapolates_the_estimate_of_all_or_of_each() -> None:
    calls = []

    def two(x: Tensor, t: Tensor, conditions: Conditions) -> Estimate:
        calls.append(len(x))
        return Estimate(conditions["c"].expand_as(x), 2 * conditions["c"].expand_as(x))

    x, ones = double(3, 2), torch.ones(3, 2, dtype=torch.float64)
    estimate = guided(two, {"c": torch.full((1, 2), 0.5, dtype=torch.float64)}, 3.0)(
        x, at(0.5, x), {"c": ones}
    )
    assert torch.allclose(estimate.x_0, torch.full_like(x, 0.5 + 3 * 0.5))
    assert calls == [6]
    each = {"c": ones, "guidance": torch.tensor([3.0, 1.0, 0.0], dtype=torch.float64)}
    estimate = guided(two, {"c": torch.full((1, 2), 0.5, dtype=torch.float64)}, 2.0)(x, at(0.5, x), each)
    assert torch.allclose(estimate.eps[:, 0], torch.tensor([4.0, 2.0, 1.0], dtype=torch.float64))


def test_clipping_bounds_x_0_and_keeps_x_t() -> None:
    x = 3 * double(100, 2)
    t = at(0.3, x)
    estimate = clipped(gaussian(Cosine()), gaussian(Cosine()), 0.4)(x, t, {})
    assert estimate.x_0.abs().max() <= 0.4
    alpha, sigma = Cosine().alpha_sigma(t)
    assert torch.allclose(
        expand_like(alpha, x) * estimate.x_0 + expand_like(sigma, x) * estimate.eps, x, atol=1e-12
    )


def halve_gaussian(path: Schedule, teacher: Denoiser, steps: int) -> Denoiser:
    """Fit a linear student (one slope per step) to algorithm 2's targets by least squares."""
    slopes = torch.zeros(steps, dtype=torch.float64)
    x_0, eps = SIGMA_DATA * double(4096, 1, seed=steps), double(4096, 1, seed=steps + 1)
    for i in range(steps):
        alpha, sigma = path.alpha_sigma(torch.tensor((i + 1) / steps, dtype=torch.float64))
        x_t = alpha * x_0 + sigma * eps
        index = torch.full((len(x_t),), float(i), dtype=torch.float64)
        target = halving_target(teacher, x_t, index, steps, {}, gaussian(path))
        slopes[i] = torch.linalg.lstsq(x_t, target).solution.item()

    class Student(Denoiser):
        def __call__(self, x: Tensor, t: Tensor, conditions: Conditions) -> Estimate:
            i = (t * steps).round().long() - 1
            alpha, sigma = self.path.alpha_sigma(t)
            x_hat = expand_like(slopes[i], x) * x
            return Estimate(x_hat, (x - expand_like(alpha, x) * x_hat) / expand_like(sigma, x))

    return Student(lambda x, t, c: x, path, Prediction.SAMPLE, path)


@pytest.mark.parametrize("path", [Cosine(), RectifiedFlow()])
def test_halving_from_64_steps_to_1_keeps_the_samplers_gain(path: Schedule) -> None:
    """Salimans & Ho's target; regressing on the teacher's second x_hat instead drifts from 0.488 to 0.585."""
    one = torch.ones(1, 1, dtype=torch.float64)

    def gain(denoiser: Denoiser, steps: int) -> float:
        return ddim(denoiser, one, trailing(steps), {}, path).item()

    student: Denoiser = gaussian(path)
    reference = gain(student, 64)
    if isinstance(path, Cosine):
        assert reference == pytest.approx(0.4878, abs=1e-3)
    for steps in (32, 16, 8, 4, 2, 1):
        student = halve_gaussian(path, student, steps)
        assert gain(student, steps) == pytest.approx(reference, abs=1e-3)


def test_halving_weights() -> None:
    """On the cosine schedule the SNR is `cot(pi t / 2)^2`, 1 at t = 1/2."""
    alpha, sigma = Cosine().alpha_sigma(INSIDE)
    snr = torch.tan(torch.pi / 2 * INSIDE) ** -2
    torch.testing.assert_close(truncated_snr(alpha, sigma), torch.where(INSIDE < 0.5, snr, 1.0))
    assert torch.allclose(snr_plus_one(alpha, sigma), 1 / sigma.square())


def test_u_shaped_times_follow_their_density() -> None:
    r = torch.rand(200_000, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    t = times_from(Times.U_SHAPED, r)
    edges = torch.linspace(0, 1, 11, dtype=torch.float64)
    shares = torch.histogram(t, edges).hist / len(t)
    mass = ((4 * edges).exp() - (4 * (1 - edges)).exp()) / (2 * math.expm1(4))
    assert torch.allclose(shares, mass.diff(), atol=3e-3)
    assert t.min() > 0 and t.max() < 1


def test_straightness_of_a_curved_and_of_a_straight_flow() -> None:
    noise = double(256, 1)
    curved = straightness(gaussian(RectifiedFlow()), noise, {}, RectifiedFlow(), steps=64)

    def straight(x: Tensor, t: Tensor, conditions: Conditions) -> Estimate:
        """The reflowed Gaussian: x_t = ((1 - t) s + t) eps, so eps is known from x_t."""
        eps = x / expand_like((1 - t) * SIGMA_DATA + t, x)
        return Estimate(SIGMA_DATA * eps, eps)

    assert curved.mean() > 1e-2
    assert straightness(straight, noise, {}, RectifiedFlow(), steps=64).max() < 1e-20
