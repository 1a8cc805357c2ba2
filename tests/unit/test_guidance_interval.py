"""Guidance in an interval of noise levels: closed forms, evaluations, the same bytes in the whole range."""

import runpy
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from pydantic import ValidationError
from tools.imports import ROOT
from torch import Tensor

from fewstep.backbones.model import open_model
from fewstep.backbones.protocol import Backbone
from fewstep.config.sampling import SamplingConfig
from fewstep.core.files import read_json
from fewstep.core.paths import MODELS, TEACHER, TRIPLETS
from fewstep.diffusion.denoiser import GUIDANCE, Conditions, Denoiser, Prediction, guided, within
from fewstep.diffusion.schedules import Cosine, RectifiedFlow
from fewstep.diffusion.solvers import Solver
from fewstep.methods import dmd2, halve
from fewstep.sampling.draw import Sampler
from fewstep.students.context import Context
from fewstep.students.start import start_and_student
from fewstep.training.method import Rows
from tests.miniature import draw_triplets, import_miniature, prepare_images
from tests.pipelines import CAPTIONS

STEPS = 6
TRAINING = {"steps": 2, "batch_size": 4, "learning_rate": 0.02}


@pytest.fixture(autouse=True)
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "no")


def counting(denoiser: Denoiser) -> tuple[Denoiser, list[int]]:
    """The denoiser, and the rows of each call of its network."""
    rows: list[int] = []

    def network(x: Tensor, time: Tensor, conditions: Conditions) -> Tensor:
        rows.append(len(x))
        return denoiser.network(x, time, conditions)

    return replace(denoiser, network=network), rows


def linear(x: Tensor, time: Tensor, conditions: Conditions) -> Tensor:
    """The velocity `text x + 1000 t`."""
    return conditions["text"] * x + time[:, None]


FLOW = Denoiser(linear, RectifiedFlow(), Prediction.FLOW, RectifiedFlow())


@pytest.mark.parametrize("scales", [None, (2.0, 5.0, 3.0, 4.0)])
def test_each_sample_is_guided_by_its_own_noise_level(scales: tuple[float, ...] | None) -> None:
    """sigma / alpha is t / (1 - t) on the rectified flow; the interval is open below and closed above."""
    t = torch.tensor([0.2, 0.5, 0.75, 1.0], dtype=torch.float64)
    conditions = {"text": torch.full((4, 1), 2.0)}
    if scales:
        conditions[GUIDANCE] = torch.tensor(scales)
    x, free = torch.ones(4, 3, dtype=torch.float64), {"text": torch.full((1, 1), -1.0)}
    denoise, rows = counting(FLOW)
    estimate = guided(denoise, free, 3.0, within(denoise, (0.25, 3.0)))(x, t, conditions)
    assert rows == [4 + 2], "the first sample is on the lower bound, the last is pure noise"
    w = torch.tensor([1.0, *(scales or (3.0,) * 4)[1:3], 1.0], dtype=torch.float64)
    velocity = (-1 + w * (2 - -1) + 1000 * t)[:, None].expand(4, 3)
    torch.testing.assert_close(estimate.velocity, velocity, rtol=1e-6, atol=0)
    torch.testing.assert_close(estimate.x_0, x - t[:, None] * velocity, rtol=1e-6, atol=0)


@pytest.mark.parametrize(
    ("interval", "expected"),
    [(None, 8), ((0.0, None), 8), ((1.5, None), 5), ((0.0, 1.5), 7), ((0.1, 0.2), 4), ((2.0, 9.0), 5)],
)
def test_rows_of_a_pass(interval: tuple[float, float | None] | None, expected: int) -> None:
    t = torch.tensor([0.3, 0.4, 0.5, 0.8], dtype=torch.float64)
    denoise, rows = counting(FLOW)
    x, text = torch.ones(4, 3, dtype=torch.float64), {"text": torch.full((4, 1), 2.0)}
    estimate = guided(denoise, {"text": torch.ones(1, 1)}, 3.0, within(denoise, interval))(x, t, text)
    assert rows == [expected]
    if expected == 4:
        assert all(map(torch.equal, estimate, FLOW(x, t, text)))


def test_the_noise_level_does_not_depend_on_the_path() -> None:
    own = replace(FLOW, schedule=Cosine(), path=Cosine())
    t = torch.tensor([0.1, 0.5, 0.9], dtype=torch.float64)
    flow = own.on(RectifiedFlow())
    at_same_snr = flow.path.time_at(own.path.angle(t))
    torch.testing.assert_close(own.noise_level(t), torch.tan(torch.pi * t / 2))
    torch.testing.assert_close(flow.noise_level(at_same_snr), own.noise_level(t))


def drawn(backbone: Backbone, **settings: Any) -> tuple[Tensor, int, int]:
    """Latents; network rows per image in drawing them; the evaluations that are reported."""
    model = open_model(TEACHER, backbone)
    denoiser, rows = counting(model.denoiser)
    sampler = Sampler(replace(model, denoiser=denoiser), backbone, SamplingConfig(steps=STEPS, **settings))
    noise = torch.randn(len(CAPTIONS), *backbone.latent_shape, generator=torch.manual_seed(0))
    with torch.no_grad():
        conditions = backbone.encode_prompts(CAPTIONS)
    latents = sampler.latents(conditions, noise, STEPS)
    return latents, sum(rows) // len(CAPTIONS), sampler.evaluations(STEPS)


@pytest.mark.parametrize("solver", [Solver.DDIM, Solver.DPM_SOLVER_PP_2M])
@pytest.mark.parametrize("family", ["sd", "sd3"])
def test_sampling_in_an_interval(family: str, solver: Solver) -> None:
    backbone = import_miniature(family)
    whole, *counts = drawn(backbone, solver=solver, guidance=3.0)
    assert counts == [2 * STEPS, 2 * STEPS]
    same, *counts = drawn(backbone, solver=solver, guidance=3.0, guidance_interval=(0.0, None))
    assert torch.equal(same, whole) and counts == [2 * STEPS, 2 * STEPS]
    none, *counts = drawn(backbone, solver=solver, guidance=3.0, guidance_interval=(0.0, 1e-6))
    unguided, *one_each = drawn(backbone, solver=solver)
    assert torch.equal(none, unguided) and counts == one_each == [STEPS, STEPS]
    middle, rows, reported = drawn(backbone, solver=solver, guidance=3.0, guidance_interval=(0.3, 2.0))
    assert STEPS < rows < 2 * STEPS and reported == rows
    assert not torch.equal(middle, whole) and not torch.equal(middle, unguided)


def test_the_first_step_of_a_zero_terminal_snr_is_counted_as_it_is_taken() -> None:
    """DPM-Solver++ evaluates it at `sigma / alpha` = 4096, DDIM at infinity."""
    backbone = import_miniature("sd", rescale_betas_zero_snr=True, prediction_type="v_prediction")
    for solver, evaluations in ((Solver.DPM_SOLVER_PP_2M, 2 * STEPS), (Solver.DDIM, 2 * STEPS - 1)):
        _, *counts = drawn(backbone, solver=solver, guidance=3.0, guidance_interval=(0.0, 5000.0))
        assert counts == [evaluations, evaluations]


def test_a_student_learns_from_the_teacher_as_it_is_sampled() -> None:
    prepare_images()
    backbone = import_miniature("sd")
    draw_triplets(backbone)
    start = open_model(TEACHER, backbone)
    config = halve.Config.model_validate(
        {"from": "teacher", "steps": 2, "guidance": 5.0, "training": TRAINING}
    )
    x = torch.randn(3, *backbone.latent_shape, generator=torch.manual_seed(0)).double()
    t = torch.tensor([0.2, 0.5, 0.9], dtype=torch.float64)
    level = start.denoiser.noise_level(t)
    estimates = []
    for interval in (None, (float(level[0]), float(level[1]))):
        context = Context(
            "new", 0, start, start, backbone, [TRIPLETS / "0"], None, None, guidance_interval=interval
        )
        sampling = SamplingConfig(guidance=5.0, guidance_interval=interval)
        with torch.no_grad():
            conditions = backbone.encode_prompts(CAPTIONS[:1] * 3)
            learned = halve.Halve(config, context, start).teacher(x, t, conditions)
            sampled = Sampler(start, backbone, sampling).denoise()(x, t, conditions)
        assert torch.equal(learned.x_0, sampled.x_0) and torch.equal(learned.eps, sampled.eps)
        estimates.append(learned.x_0)
    whole, limited = estimates
    same = [torch.allclose(a, b, atol=1e-5) for a, b in zip(whole, limited, strict=True)]
    assert same == [False, True, False], "guided in both: the second alone"


def test_dmd2_leaves_its_guidance_term_out_of_the_interval() -> None:
    """Its decoupled term is `(w - 1) (D_c - D_u)` at a time of its own; without it w is 1."""
    prepare_images()
    backbone = import_miniature("sd")
    draw_triplets(backbone)
    start = open_model(TEACHER, backbone)

    def gradient(guidance: float, interval: tuple[float, float | None] | None) -> Tensor:
        settings = {"from": "teacher", "method": "dmd2", "training": TRAINING, "guidance": guidance}
        fake = {"learning_rate": 0.02}
        config = dmd2.Config.model_validate({**settings, "decoupled": True, "fake": fake})
        _, student = start_and_student(start, "new", backbone, config, 0)
        context = Context(
            "new", 0, start, student, backbone, [TRIPLETS / "0"], None, None, guidance_interval=interval
        )
        method = dmd2.METHOD(config, context, dmd2.student_of(config, student))
        with torch.no_grad():
            batch = method.prepare(method.batch(Rows(0, range(4))))
            x = torch.randn(4, *backbone.latent_shape, generator=torch.manual_seed(0))
            x_tau, tau = method.noised(x, batch)
            return method.decoupled_gradient(x, x_tau, tau, batch)

    unguided, whole = gradient(1.0, None), gradient(5.0, None)
    assert torch.equal(gradient(5.0, (0.0, None)), whole) and not torch.equal(whole, unguided)
    assert torch.equal(gradient(5.0, (0.0, 1e-9)), unguided)


@pytest.mark.parametrize(
    ("stage", "key", "name", "section", "more"),
    [
        ("halve", "1", "halve-1", "halve", {"steps": 1}),
        ("distill", "new", "new", "students", {"method": "lcm", "grid": 4}),
    ],
)
def test_the_stages_take_the_interval_of_sampling(
    stage: str, key: str, name: str, section: str, more: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FEWSTEP_TRACKERS", "")
    prepare_images()
    draw_triplets(import_miniature("sd"))
    (TRIPLETS / "0").rename("shard")
    (TRIPLETS / "0").mkdir()
    Path("shard").rename(TRIPLETS / "0/0")
    student = {"from": "teacher", "guidance": 5.0, "training": TRAINING} | more
    monkeypatch.setattr("sys.argv", [f"{stage}.py", key])
    digests = []
    for interval in (None, [0.0, None], [0.0, 1e-6]):
        params = {"seed": 0, "features": str(TEACHER), "sampling": {"guidance_interval": interval}}
        triplets = {"count": 8, "shard_size": 8, "groups": [0]}
        params |= {"triplets": triplets, section: {key: student}}
        Path("params.yaml").write_text(yaml.safe_dump(params))
        runpy.run_path(str(ROOT / f"stages/{stage}.py"))["main"]()
        (file,) = (MODELS / name / "net").glob("*.safetensors")
        digests.append(file.read_bytes())
        shutil.rmtree(MODELS / name)
    assert digests[0] == digests[1] != digests[2]


def test_triplets_record_their_interval() -> None:
    prepare_images()
    backbone = import_miniature("sd")
    teacher = draw_triplets(backbone, guidance=3.0)
    recorded = read_json(TRIPLETS / "0" / "manifest.json")["facts"]["sampling"]
    assert "guidance_interval" not in recorded, "manifests of the whole range are what they were"
    assert SamplingConfig.model_validate(recorded) == teacher.sampling
    limited = teacher.sampling.model_copy(update={"guidance_interval": (0.3, None)})
    plain = limited.model_dump(mode="json")
    assert plain["guidance_interval"] == [0.3, None]
    assert SamplingConfig.model_validate(plain) == limited


@pytest.mark.parametrize("interval", [(-0.1, 1.0), (1.0, 1.0), (2.0, 1.0), (0.0, float("inf")), (1.0,)])
def test_an_impossible_interval_is_refused(interval: Any) -> None:
    with pytest.raises(ValidationError, match="guidance_interval"):
        SamplingConfig(guidance_interval=interval)
