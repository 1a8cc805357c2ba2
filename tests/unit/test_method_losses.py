"""Each method's losses against their formulas, written out anew; and mutations that must each be noticed.

The expected values come from numpy and the papers' equations alone. Randomness is drawn from the keys that a
method documents: `times`, `step` and `noise` of the model to be made.
"""

from collections.abc import Callable, Sequence
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from fewstep.backbones.model import Model
from fewstep.core.keyed import Key
from fewstep.data.triplets import TripletBatch
from fewstep.diffusion.denoiser import END_TIME, Conditions, Denoiser, Prediction
from fewstep.diffusion.sampling import STUDENTS, TEACHERS
from fewstep.diffusion.schedules import Cosine, DiscreteVP, RectifiedFlow
from fewstep.losses import perceptual
from fewstep.methods import direct, flow_map, halve, lcm, piecewise, reflow
from fewstep.students import guidance as guiding
from fewstep.students import noising
from fewstep.training.method import Rows

BATCH, SIZE = 64, 3
TRAINING = {"steps": 10, "batch_size": BATCH, "learning_rate": 1.0}
UNCONDITIONAL = 0.3
END = 0.1


class Scaled(nn.Module):
    """`scale x + slope time + END end`, the scale a condition where there is one; end: of the step."""

    def __init__(self, scale: float, slope: float = 0.0) -> None:
        super().__init__()
        self.scale, self.slope = scale, slope

    def forward(self, x: Tensor, time: Tensor, conditions: Conditions) -> Tensor:
        scale, end = conditions.get("scale", torch.tensor(self.scale)), conditions[END_TIME]
        return scale * x + self.slope * time[:, None] + END * end[:, None] / 1000


def model(net: nn.Module, prediction: Prediction, schedule: Any, takes_condition: bool = False) -> Any:
    """What a method uses of a model."""

    def network(x: Tensor, time: Tensor, conditions: Conditions) -> Tensor:
        if takes_condition:  # a teacher's, which knows no end
            return net(x, time, conditions | {END_TIME: torch.zeros_like(time)})
        return net(x, time, {END_TIME: conditions[END_TIME]})

    return SimpleNamespace(
        net=net,
        denoiser=Denoiser(network, schedule, prediction, schedule, () if takes_condition else (END_TIME,)),
        sampling=TEACHERS if takes_condition else STUDENTS,
    )


def on_a_path(found: Any) -> Model:
    """What `model` makes, as a model that can be put on another path."""
    return Model("model", found.net, found.denoiser, None, found.sampling)


TABLE = DiscreteVP((0.9, 0.2))
ANGLES = np.array([0.0, np.arccos(np.sqrt(0.9)), np.arccos(np.sqrt(0.2))])
"""Of its knots 0, 1/2 and 1. The rectified flow reaches the last angle at t = 2/3."""
LAST = {RectifiedFlow(): 1.0, TABLE: 2 / 3}


def flow_network(schedule: Any, k: Any, slope: float, end: float) -> Callable[..., np.ndarray]:
    """`k x + slope time + end r` of a network that predicts velocities, in its own x and times."""

    def own_time(t: np.ndarray) -> np.ndarray:
        if schedule != TABLE:
            return 1000 * t
        return np.maximum(2 * np.interp(np.arctan2(t, 1 - t), ANGLES, [0, 0.5, 1]) - 1, 0)

    def velocity(x: np.ndarray, t: np.ndarray, r: np.ndarray) -> np.ndarray:
        own_x = x / np.hypot(1 - t, t) if schedule == TABLE else x
        return k * own_x + slope * own_time(t) + end * own_time(r) / 1000

    return velocity


def samples() -> tuple[TripletBatch, Tensor]:
    """Triplets in float64, each with a condition of its own `[B, 1]`."""
    generator = torch.Generator().manual_seed(0)
    x_0, eps = (torch.randn(BATCH, SIZE, dtype=torch.float64, generator=generator) for _ in range(2))
    scale = torch.rand(BATCH, 1, dtype=torch.float64, generator=generator)
    return TripletBatch(x_0, eps, {"scale": scale}), scale


def context(start: Any = None, **more: Any) -> Any:
    """A method's inputs."""
    pairs, _ = samples()
    return SimpleNamespace(
        start=start,
        key=lambda use: Key(0, f"model/{use}"),
        triplet_batch=lambda positions: pairs,
        clean_batch=lambda positions: (pairs.x_0, pairs.conditions),
        unconditional=lambda: {"scale": torch.full((1, 1), UNCONDITIONAL, dtype=torch.float64)},
        **more,
    )


def losses(method: Any, step: int = 0) -> dict[str, float]:
    """Of the first batch."""
    batch = method.prepare(method.batch(Rows(step, range(BATCH))))
    return {name: float(value) for name, value in method.losses("student", batch, step).items()}


def check_halve(module: ModuleType) -> None:
    """Salimans & Ho 2022, algorithm 2 on the cosine schedule; the teacher's estimate is `k x`, the student's
    `0.7 x + END s`, s the end of its step. With guidance w, `k = u + w (c - u)`.
    """
    pairs, scale = samples()
    x_0, steps, positions = pairs.x_0.numpy(), 3, range(BATCH)
    i = np.floor(Key(0, "model/step").uniform(positions)[:, :1] * steps)
    eps = Key(0, "model/noise").normal(positions, (SIZE,)).astype(np.float64)

    def coefficients(t: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return np.cos(np.pi * t / 2), np.sin(np.pi * t / 2)

    def ddim(x: np.ndarray, k: np.ndarray, t: np.ndarray, s: np.ndarray) -> np.ndarray:
        (alpha, sigma), (alpha_s, sigma_s) = coefficients(t), coefficients(s)
        return alpha_s * k * x + sigma_s * (x - alpha * k * x) / sigma

    cases: list[tuple[str, Any]] = [("truncated_snr", 1.0), ("snr_plus_one", 1.0), ("truncated_snr", 2.5)]
    for weight, guidance in [*cases, ("truncated_snr", np.linspace(1, 5, BATCH)[:, None])]:
        own = isinstance(guidance, np.ndarray)  # each triplet's, for a student that takes it as an input
        values = {"from": "teacher", "steps": steps, "weight": weight, "training": TRAINING}
        config = module.Config.model_validate(
            values | ({"guidance_embedding": True} if own else {"guidance": guidance})
        )
        start = model(Scaled(0.0), Prediction.SAMPLE, Cosine(), takes_condition=True)
        student = model(Scaled(0.7), Prediction.SAMPLE, Cosine())
        inputs = context(start)
        if own:
            conditions = pairs.conditions | {"guidance": torch.from_numpy(guidance[:, 0])}
            inputs.clean_batch = lambda positions, conditions=conditions: (pairs.x_0, conditions)
        found = losses(module.Halve(config, inputs, student))
        k = UNCONDITIONAL + guidance * (scale.numpy() - UNCONDITIONAL)
        t = (i + 1) / steps
        alpha, sigma = coefficients(t)
        x_t = alpha * x_0 + sigma * eps
        x_end = ddim(ddim(x_t, k, t, t - 0.5 / steps), k, t - 0.5 / steps, i / steps)
        alpha_end, sigma_end = coefficients(i / steps)
        target = (x_end - sigma_end / sigma * x_t) / (alpha_end - sigma_end / sigma * alpha)
        snr = (alpha / sigma) ** 2
        w = np.maximum(snr, 1) if weight == "truncated_snr" else snr + 1
        assert found == {
            "x_0": pytest.approx((w * (0.7 * x_t + END * i / steps - target) ** 2).mean(), rel=1e-5)
        }


def check_reflow(module: ModuleType) -> None:
    """Liu et al. 2022, eq. 1, and Lee et al. 2024: times of density `e^{4t} + e^{4(1 - t)}`, pseudo-Huber."""
    pairs, _ = samples()
    x_0, eps = pairs.x_0.numpy(), pairs.eps.numpy()
    r = Key(0, "model/times").uniform(range(BATCH), 2)
    s = np.log(1 + r[:, :1] * (np.exp(4) - 1)) / 4
    for loss in ("plain", "improved"):
        config = module.Config.model_validate({"from": "teacher", "loss": loss, "training": TRAINING})
        student = model(Scaled(0.3, slope=2e-4), Prediction.FLOW, RectifiedFlow())
        found = losses(module.Reflow(config, context(), student))
        t = r[:, :1] if loss == "plain" else np.where(r[:, 1:] < 0.5, s, 1 - s)
        t = np.clip(t, 1e-5, 1 - 1e-5)
        error = 0.3 * ((1 - t) * x_0 + t * eps) + (0.2 + END) * t - (eps - x_0)
        c = 0.00054 * SIZE
        huber = (np.sqrt((error**2).sum(1) + c**2) - c).mean() / SIZE
        expected = (error**2).mean() if loss == "plain" else huber
        assert found == {"velocity": pytest.approx(expected, rel=1e-5)}


def check_direct(module: ModuleType) -> None:
    """`x_hat = eps - u(eps, 1)`; the perceptual phase adds pixels of a decoder `z -> 3 z`."""
    pairs, _ = samples()
    x_0, eps = pairs.x_0.numpy(), pairs.eps.numpy()
    error = eps - (0.3 * eps + 0.2) - x_0
    distances = {
        "l2": (error**2).mean(),
        "l1": np.abs(error).mean(),
        "log_l1": np.log(np.abs(error).mean(1) + 0.02).mean(),
    }
    for kind, expected in distances.items():
        values = {"method": "direct", "from": "teacher", "latent_loss": kind, "latent_weight": 0.5}
        more = {"pixel_weight": 0.25, "perceptual_from": 4, "training": TRAINING}
        config = module.Config.model_validate(values | more)
        student = model(Scaled(0.3, slope=2e-4), Prediction.FLOW, RectifiedFlow())
        backbone = SimpleNamespace(decode=lambda z: 3 * z, decoder=nn.Identity)
        method = module.Direct(config, context(backbone=backbone), student)
        latents = {"latents": pytest.approx(0.5 * expected, rel=1e-5)}
        pixels = {"pixels": pytest.approx(0.25 * 3 * np.abs(error).mean(), rel=1e-5)}
        assert losses(method, step=3) == latents
        assert losses(method, step=4) == latents | pixels


def check_noising(module: ModuleType) -> None:
    """`x_t = alpha x_0 + sigma eps` at `t = (i + 1) / steps`, i uniform, eps fresh."""
    pairs, _ = samples()
    found = module.noised(context(), Cosine(), range(BATCH), 3)
    i = np.floor(Key(0, "model/step").uniform(range(BATCH))[:, 0] * 3)
    eps = Key(0, "model/noise").normal(range(BATCH), (SIZE,)).astype(np.float64)
    angle = np.pi / 2 * (i[:, None] + 1) / 3
    assert found.i.tolist() == i.tolist() and torch.equal(
        found.conditions["scale"], pairs.conditions["scale"]
    )
    expected = np.cos(angle) * pairs.x_0.numpy() + np.sin(angle) * eps
    assert np.allclose(found.x_t.numpy(), expected, atol=1e-12)


def check_guidance(module: ModuleType) -> None:
    """`u + w (c - u)` where w is not 1 or each sample's own; a start with built-in guidance has no other."""
    pairs, scale = samples()
    own = torch.linspace(1, 5, BATCH, dtype=torch.float64)
    for by_scale, w, by_condition in [
        (True, 2.5, False),
        (True, 1.0, False),
        (True, 1.0, True),
        (False, 1.0, True),
    ]:
        start = model(Scaled(0.0), Prediction.SAMPLE, Cosine(), takes_condition=True)
        start.sampling = TEACHERS if by_scale else STUDENTS
        conditions = pairs.conditions | ({"guidance": own} if by_condition and by_scale else {})
        found = module.guided_model(start, context(start), w, by_condition)
        assert (found is start.denoiser) == (w == 1 and not (by_scale and by_condition))
        x_0 = found(pairs.eps, torch.full((BATCH,), 0.5), conditions).x_0
        scales = own[:, None].numpy() if "guidance" in conditions else w
        k = UNCONDITIONAL + scales * (scale.numpy() - UNCONDITIONAL)
        assert np.allclose(x_0.numpy(), k * pairs.eps.numpy(), atol=1e-6)
    assert module.with_scales(pairs.conditions, context(), 3.0, range(BATCH)) is pairs.conditions
    found = module.with_scales(pairs.conditions, context(), (2.0, 5.0), range(BATCH))
    drawn = 2 + 3 * Key(0, "model/guidance").uniform(range(BATCH))[:, 0]
    assert found.keys() == {"scale", "guidance"} and np.allclose(found["guidance"].numpy(), drawn)


def check_lcm(module: ModuleType) -> None:
    """Luo et al. 2023, algorithm 1, with one segment and with two (Wang et al. 2024) of 6 teacher steps.

    The student's estimate is `0.7 x + END e`, its average's `0.6 x + END e`, e the end of the segment.
    """
    pairs, scale = samples()
    x_0, grid, positions = pairs.x_0.numpy(), 6, range(BATCH)
    i = np.floor(Key(0, "model/step").uniform(positions)[:, :1] * grid)
    eps = Key(0, "model/noise").normal(positions, (SIZE,)).astype(np.float64)
    drawn = 1 + 3 * Key(0, "model/guidance").uniform(positions)[:, :1]  # of 1 to 4

    def ddim(x: np.ndarray, estimate: np.ndarray, t: np.ndarray, s: np.ndarray) -> np.ndarray:
        rest = (x - np.cos(np.pi * t / 2) * estimate) / np.sin(np.pi * t / 2)
        return np.cos(np.pi * s / 2) * estimate + np.sin(np.pi * s / 2) * rest

    cases: list[tuple[int, Any, bool]]
    cases = [(1, 1.0, False), (2, 2.5, False), (3, (1.0, 4.0), True), (1, (1.0, 4.0), False)]
    for segments, guidance, embeds in cases:
        values = {
            "method": "lcm",
            "from": "teacher",
            "training": TRAINING,
            "grid": grid,
            "segments": segments,
        }
        ranged = isinstance(guidance, tuple)
        config = module.Config.model_validate(values | {"guidance": guidance, "guidance_embedding": embeds})
        start = model(Scaled(0.0), Prediction.SAMPLE, Cosine(), takes_condition=True)
        student, average = (model(Scaled(k), Prediction.SAMPLE, Cosine()) for k in (0.7, 0.6))
        backbone = SimpleNamespace(network=lambda net, inputs, average=average: average.denoiser.network)
        method = module.METHOD(config, context(start, backbone=backbone), student)
        assert method.groups["student"].decays == {"target": 0.95}
        method.groups["student"].averages["target"] = {"net": average.net}
        found = losses(method)
        k = UNCONDITIONAL + (drawn if ranged else guidance) * (scale.numpy() - UNCONDITIONAL)
        t, s, each = (i + 1) / grid, i / grid, grid // segments
        end = np.floor(i / each) * each / grid
        x_t = np.cos(np.pi * t / 2) * x_0 + np.sin(np.pi * t / 2) * eps
        x_s = ddim(x_t, k * x_t, t, s)
        with np.errstate(divide="ignore", invalid="ignore"):
            target = np.where(s == end, x_s, ddim(x_s, 0.6 * x_s + END * end, s, end))
        error = ddim(x_t, 0.7 * x_t + END * end, t, end) - target
        expected = (np.sqrt(error**2 + 1e-6) - 1e-3).mean()
        assert found == {"consistency": pytest.approx(expected, rel=1e-5)}


def check_flow_map(module: ModuleType) -> None:
    """Geng et al. 2025, eq. 6: `u = v - (t - r) du/dt`; the tangent over its root mean square + 0.1.

    The student's velocity is `0.7 x + slope t + END r`, so that a difference of any width is its derivative,
    on the flow; on a table the difference is written out.
    """
    pairs, scale = samples()
    flow, h, slope, positions = RectifiedFlow(), 5e-3, 3e-4, range(BATCH)
    r = Key(0, "model/times").uniform(positions, 4)
    s = np.log(1 + r[:, :1] * (np.exp(4) - 1)) / 4
    eps = Key(0, "model/noise").normal(positions, (SIZE,)).astype(np.float64)
    drawn = 1 + 3 * Key(0, "model/guidance").uniform(positions)[:, :1]  # of 1 to 4
    cases: list[tuple[Any, str, Any, bool, str, int]] = [
        (flow, "central", 1.0, False, "uniform", 2),
        (flow, "jvp", 2.5, False, "u_shaped", 20),
        (flow, "central", (1.0, 4.0), True, "uniform", 20),
        (TABLE, "central", (1.0, 4.0), False, "u_shaped", 20),
    ]
    for schedule, derivative, guidance, embeds, times, step in cases:
        values = {"method": "flow_map", "from": "teacher", "training": TRAINING, "warmup_tangent": 8}
        values |= {"share_r_t": 0.3, "share_r_0": 0.2, "times": times, "derivative": derivative}
        config = module.Config.model_validate(values | {"guidance": guidance, "guidance_embedding": embeds})
        start = on_a_path(model(Scaled(0.0), Prediction.FLOW, schedule, takes_condition=True))
        made = on_a_path(model(Scaled(0.7, slope), Prediction.FLOW, schedule))
        found = losses(module.METHOD(config, context(start), module.student_of(config, made)), step)
        t = r[:, :1] if times == "uniform" else np.where(r[:, 1:2] < 0.5, s, 1 - s)
        t = np.clip(t, 1e-5, 1 - 1e-5)
        x_t = (1 - t) * pairs.x_0.numpy() + t * eps
        # The same point with the schedule's noisiest time, and the scale that the path has there.
        beyond, t = t, np.minimum(t, LAST[schedule])
        x_t *= np.hypot(1 - t, t) / np.hypot(1 - beyond, beyond)
        end = np.where(r[:, 2:3] < 0.3, t, np.where(r[:, 2:3] < 0.5, 0, r[:, 3:] * t))
        w = drawn if isinstance(guidance, tuple) else guidance
        k = UNCONDITIONAL + w * (scale.numpy() - UNCONDITIONAL)
        v = flow_network(schedule, k, 0.0, 0.0)(x_t, t, end)
        u = flow_network(schedule, 0.7, slope, END)
        after, before = np.minimum(t + h, LAST[schedule]), np.maximum(t - h, end)
        there, back = (u(x_t + (at - t) * v, at, end) for at in (after, before))
        slopes = (there - back) / np.maximum(after - before, 1e-12)
        change = 0.7 * v + 1000 * slope if schedule == flow else slopes
        g = v - u(x_t, t, end) - min(step / 8, 1) * (t - end) * change
        g /= np.sqrt((g**2).mean(1, keepdims=True)) + 0.1
        assert found == {"velocity": pytest.approx((g**2).mean(), rel=1e-4)}


def check_piecewise(module: ModuleType) -> None:
    """Yan et al. 2024, algorithm 1: `u = (x_start - x_end) / (start - end)` at a point of the line between.

    The noisiest window starts with pure noise, at the end of the network's schedule.
    """
    pairs, scale = samples()
    flow, positions = RectifiedFlow(), range(BATCH)
    r = Key(0, "model/times").uniform(positions, 2)
    eps = Key(0, "model/noise").normal(positions, (SIZE,)).astype(np.float64)
    drawn = 1 + 3 * Key(0, "model/guidance").uniform(positions)[:, :1]  # of 1 to 4
    cases: list[tuple[Any, int, str, int, Any, bool]] = [
        (flow, 4, "ddim", 3, 2.5, False),
        (TABLE, 2, "ddim", 2, (1.0, 4.0), True),
        (TABLE, 1, "ddim", 2, (1.0, 4.0), False),
        (flow, 3, "dpm_solver_pp_2m", 2, 1.0, False),
    ]
    for schedule, windows, solver, steps, guidance, embeds in cases:
        values = {"method": "piecewise", "from": "teacher", "training": TRAINING, "windows": windows}
        values |= {"guidance": guidance, "guidance_embedding": embeds}
        config = module.Config.model_validate(values | {"solver": solver, "solver_steps": steps})
        start = on_a_path(model(Scaled(0.0), Prediction.FLOW, schedule, takes_condition=True))
        made = on_a_path(model(Scaled(0.7, 3e-4), Prediction.FLOW, schedule))
        found = losses(module.METHOD(config, context(start), module.student_of(config, made)))
        w = drawn if isinstance(guidance, tuple) else guidance
        v = flow_network(schedule, UNCONDITIONAL + w * (scale.numpy() - UNCONDITIONAL), 0.0, 0.0)
        k, last = np.floor(r[:, :1] * windows) + 1, LAST[schedule]
        begin, end = np.minimum(k / windows, last), (k - 1) / windows
        x = (1 - begin) * pairs.x_0.numpy() + begin * eps
        x = x_start = np.where(k == windows, np.hypot(last, 1 - last) * eps, x)
        t, before, lengths = begin, x, []
        for i in range(steps):
            s = begin + (end - begin) * (i + 1) / steps
            data = x - t * v(x, t, end)
            with np.errstate(divide="ignore", invalid="ignore"):
                lengths.append(np.log((1 - s) / s) - np.log((1 - t) / t))
                ahead = lengths[-1] / (2 * lengths[0]) if i and solver != "ddim" else 0 * s
            ahead = np.where(np.isfinite(lengths[-1]), np.nan_to_num(ahead), 0)
            target = data + ahead * (data - before)
            # The exact solution for a constant estimate of x_0, which for DDIM is Euler's step.
            x, t, before = target + s / t * (x - target), s, data
        u = (x_start - x) / (begin - end)
        t = begin + (end - begin) * r[:, 1:]
        error = flow_network(schedule, 0.7, 3e-4, END)(x_start + (t - begin) * u, t, end) - u
        assert found == {"velocity": pytest.approx((error**2).mean(), rel=1e-5)}


def check_perceptual(module: ModuleType) -> None:
    """Zhang et al. 2018, eq. 1: `sum_l mean_hw sum_c w (a - b)^2` of unit vectors; w = 1: the mean over l."""
    generator = torch.Generator().manual_seed(0)
    x, y = (torch.randn(2, 3, 4, 5, dtype=torch.float64, generator=generator) for _ in range(2))
    weights = [torch.tensor([0.2, 0.5, 0.0]), torch.tensor([1.5])]

    def maps(x: Tensor) -> list[Tensor]:
        return [x, x[:, :1, :2].exp() - 1]

    def unit(x: np.ndarray) -> np.ndarray:
        return x / np.sqrt((x**2).sum(1, keepdims=True))

    def expected(channels: list[Any]) -> list[float]:
        images = zip(maps(x), maps(y), channels, strict=True)
        squares = [((unit(a.numpy()) - unit(b.numpy())) ** 2, np.array(w)) for a, b, w in images]
        return [(w[:, None, None] * square).sum(1).mean() for square, w in squares]

    for given, value in (
        (None, np.mean(expected([[1.0] * 3, [1.0]]))),
        (weights, np.sum(expected([weight.tolist() for weight in weights]))),
    ):
        found = module.perceptual_distance(SimpleNamespace(maps=maps, channel_weights=given), x, y)
        assert float(found) == pytest.approx(float(value), rel=1e-5)


CHECKS: dict[ModuleType, Callable[[ModuleType], None]] = {
    halve: check_halve,
    reflow: check_reflow,
    direct: check_direct,
    lcm: check_lcm,
    flow_map: check_flow_map,
    piecewise: check_piecewise,
    noising: check_noising,
    guiding: check_guidance,
    perceptual: check_perceptual,
}
MUTATIONS: dict[ModuleType, Sequence[tuple[str, str]]] = {
    halve: [
        ("t = (batch.i + 1) / self.config.steps", "t = (batch.i + 0.5) / self.config.steps"),
        ("end = batch.i / self.config.steps", "end = t"),
        ("estimate.x_0 - batch.target", "estimate.eps - batch.target"),
        ("expand_like(weight, error) * error.square()", "error.square()"),
        ("expand_like(weight, error) * error.square()", "expand_like(weight, error) * error.abs()"),
        ("self.teacher, batch.x_t, batch.i, self.config.steps", "self.teacher, batch.x_t, batch.i, 4"),
        ("config.guidance, config.guidance_embedding)", "1.0, config.guidance_embedding)"),
        ("config.guidance, config.guidance_embedding)", "config.guidance, False)"),
        ("self.path, rows.positions, self.config.steps)", "self.path, rows.positions, 4)"),
        ('"truncated_snr": truncated_snr', '"truncated_snr": snr_plus_one'),
        ('"snr_plus_one": snr_plus_one', '"snr_plus_one": truncated_snr'),
    ],
    reflow: [
        ("- (pairs.eps - pairs.x_0)", "+ (pairs.eps - pairs.x_0)"),
        ("torch.lerp(pairs.x_0, pairs.eps,", "torch.lerp(pairs.eps, pairs.x_0,"),
        ("denoise, x_t, t, t,", "denoise, x_t, 1 - t, t,"),
        ("denoise, x_t, t, t,", "denoise, x_t, t, 1 - t,"),
        ("conditions).velocity", "conditions).eps"),
        ('Times.U_SHAPED if self.config.loss == "improved"', 'Times.U_SHAPED if self.config.loss == "plain"'),
        ('pseudo_huber(error) if self.config.loss == "improved"', "pseudo_huber(error) if False"),
        ("- c).mean() / dim", "- c).mean()"),
        ("c = HUBER * dim", "c = HUBER * 100 * dim"),
        ("c**2).sqrt() - c)", "c**2).sqrt())"),
    ],
    direct: [
        ("t = torch.ones(", "t = torch.zeros("),
        ("self.denoiser, batch.eps,", "self.denoiser, batch.x_0,"),
        ("torch.zeros_like(t)", "t"),
        ("config.latent_weight * distance", "distance"),
        ("x_hat, batch.x_0)}", "x_hat, batch.eps)}"),
        ("step >= config.perceptual_from", "step > config.perceptual_from"),
        ("config.pixel_weight * (image", "(image"),
        ("target = backbone.decode(batch.x_0)", "target = backbone.decode(batch.eps)"),
        ("image = backbone.decode(x_hat)", "image = x_hat"),
        ('if kind == "l2"', 'if kind == "l1"'),
        ('if kind == "log_l1"', 'if kind == "l1"'),
        ("each + NEAR", "each"),
    ],
    lcm: [
        ("(batch.i + 1) / grid, batch.i / grid", "(batch.i + 1) / grid, (batch.i + 0.5) / grid"),
        ("(batch.i / each).floor() * each", "0 * batch.i"),
        ("asked(self.teacher, batch.x_t, t,", "asked(self.teacher, batch.x_t, s,"),
        ("self.landed(self.average, x_s", "self.landed(self.denoiser, x_s"),
        ("self.landed(self.average, x_s", "self.landed(self.average, batch.x_t"),
        ("torch.where(expand_like(s == end, x_s).bool(), x_s, reached)", "reached.nan_to_num()"),
        ("asked(denoise, x, t, end,", "asked(denoise, x, t, t,"),
        ("predicted - batch.target", "predicted - batch.x_t"),
        ("context, config.scale, config.per_sample)", "context, config.scale, False)"),
        ("context, config.scale, config.per_sample)", "context, 1.0, config.per_sample)"),
        ("self.config.guidance, rows", "1.0, rows"),
        ("HUBER = 1e-3", "HUBER = 1e-1"),
        ("rows.positions, self.config.grid)", "rows.positions, 5)"),
    ],
    flow_map: [
        ("context.start.denoiser.on(self.denoiser.path)", "context.start.denoiser"),
        ("x_t, t = self.denoiser.onto_schedule(x_t, t)", ""),
        ("x_t, t = self.denoiser.onto_schedule(x_t, t)", "t = self.denoiser.onto_schedule(x_t, t)[1]"),
        ("uniform[:, 2], uniform[:, 3]", "uniform[:, 2], uniform[:, 2]"),
        ("kind < whole, 0.0, share * t", "kind < whole, share * t, 0.0"),
        ("share * t))", "share))"),
        ("self.context.key(\"times\")", "self.context.key(\"other\")"),
        ("asked(self.teacher, x_t, t, t,", "asked(self.teacher, x_t, r, r,"),
        ("asked(self.denoiser, x, at, r,", "asked(self.denoiser, x, at, at,"),
        ("asked(self.denoiser, x, at, r,", "asked(self.denoiser, x, t, r,"),
        ("expand_like(t - r, x_t) * change", "expand_like(t, x_t) * change"),
        ("u.detach() - grown * batch", "u.detach() + grown * batch"),
        ("min(step / warmup, 1.0)", "(step / warmup)"),
        ("min(step / warmup, 1.0)", "1.0"),
        (".square().mean(1).sqrt()", ".square().sum(1).sqrt()"),
        ("C = 0.1", "C = 0.0"),
        ("expand_like(s - t, x) * v", "expand_like(s - t, x) * x"),
        ("(x, t), (v, torch.ones_like(t))", "(x, t), (v, torch.zeros_like(t))"),
        ("(x, t), (v, torch.ones_like(t))", "(x, t), (x, torch.ones_like(t))"),
        ("(t + H).clamp(max=last)", "t + H"),
        ("H = 5e-3", "H = 5e-2"),
        ("context, config.scale, config.per_sample)", "context, config.scale, False)"),
        ("context, config.scale, config.per_sample)", "context, 1.0, config.per_sample)"),
        ("self.context, self.config.guidance, rows", "self.context, 1.0, rows"),
    ],
    piecewise: [
        ("context.start.denoiser.on(self.path)", "context.start.denoiser"),
        ("self.config.windows).floor() + 1", "self.config.windows).floor()"),
        ("end, start = (k - 1) / self", "end, start = 0 * k / self"),
        ("x, start = self.denoiser.onto_schedule(x, start)", ""),
        ("x, start = self.denoiser.onto_schedule", "_, start = self.denoiser.onto_schedule"),
        ("torch.lerp(start, end, uniform[:, 1])", "torch.lerp(end, start, uniform[:, 1])"),
        ("torch.lerp(start, end, uniform[:, 1])", "start"),
        ("for i in range(steps + 1)", "for i in (0, steps)"),
        ("ODE_SOLVERS[self.config.solver]", "ODE_SOLVERS[Solver.DDIM]"),
        ("(batch.x - x_end) / expand_like(start - end, x_end)", "batch.x - x_end"),
        ("(batch.x - x_end)", "(x_end - batch.x)"),
        ("x_end + expand_like(batch.t - end, u) * u", "x_end + expand_like(batch.t, u) * u"),
        ("batch.x_t, batch.t, batch.end,", "batch.x_t, batch.end, batch.end,"),
        ("batch.x_t, batch.t, batch.end,", "batch.x_t, batch.t, batch.t,"),
        ("velocity - batch.u", "eps - batch.u"),
        ("error.square()", "error.abs()"),
        ("context, config.scale, config.per_sample)", "context, config.scale, False)"),
        ("context, config.scale, config.per_sample)", "context, 1.0, config.per_sample)"),
        ("self.context, self.config.guidance, rows", "self.context, 1.0, rows"),
    ],
    noising: [
        ("positions, (i + 1) / steps)", "positions, i / steps + 0.1)"),
        ("(uniform * steps).floor()", "(uniform * steps).round() * 0.9"),
        ("expand_like(sigma, eps) * eps", "expand_like(alpha, eps) * eps"),
        ("expand_like(alpha, x_0) * x_0", "expand_like(sigma, x_0) * x_0"),
        ('context.key("noise")', 'context.key("other")'),
        ('context.key("step")', 'context.key("other")'),
    ],
    guiding: [
        ("low + (high - low)", "high + (high - low)"),
        ("context.unconditional(), scale)", "context.unconditional(), 1.0)"),
        ("if scale != 1 or", "if"),
        ("or (by_scale and per_sample)", ""),
        ("(by_scale and per_sample)", "per_sample"),
    ],
    perceptual: [
        ("normalize(a.float(), dim=1) - normalize(b.float(), dim=1)", "a.float() - b.float()"),
        (".square()", ".abs()"),
        ("targets = network.maps(y)", "targets = network.maps(x)"),
        ("for each in squares]).mean()", "for each in squares]).sum()"),
        ("for each in weighted]).sum()", "for each in weighted]).mean()"),
        ("w[:, None, None] * each", "each"),
        ("w[:, None, None] * each", "w[:, None, None] ** 2 * each"),
        ("each.sum(1).mean() for each in weighted", "each.mean() for each in weighted"),
    ],
}  # fmt: skip


@pytest.fixture(autouse=True)
def full_precision(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "no")


def mutated(module: ModuleType, line: str, other: str) -> ModuleType:
    """The module with one expression replaced."""
    assert module.__file__ is not None
    with open(module.__file__) as file:  # noqa: PTH123
        source = file.read()
    assert source.count(line) == 1, f"{line!r} is there {source.count(line)} times; write the mutation anew"
    made = ModuleType(module.__name__)
    exec(compile(source.replace(line, other), module.__file__, "exec"), made.__dict__)
    return made


@pytest.mark.parametrize("module", CHECKS, ids=lambda module: module.__name__.split(".")[-1])
def test_losses_are_the_papers(module: ModuleType) -> None:
    CHECKS[module](module)


@pytest.mark.parametrize(
    ("module", "line", "other"),
    [(module, *mutation) for module, mutations in MUTATIONS.items() for mutation in mutations],
    ids=[f"{m.__name__.split('.')[-1]}-{i}" for m, each in MUTATIONS.items() for i in range(len(each))],
)
def test_a_mutation_is_noticed(module: ModuleType, line: str, other: str) -> None:
    broken = mutated(module, line, other)
    with pytest.raises(AssertionError):
        CHECKS[module](broken)
