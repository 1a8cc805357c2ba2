"""The steps of stock schedulers: the same times, and by both solvers the same latents."""

from itertools import pairwise
from pathlib import Path
from typing import Any

import diffusers as d
import pytest
import torch

from fewstep.backbones.model import open_model
from fewstep.backbones.pipeline import DiffusersBackbone
from fewstep.config.sampling import SamplingConfig
from fewstep.config.triplets import TripletsConfig
from fewstep.core.paths import TEACHER
from fewstep.diffusion.denoiser import Prediction
from fewstep.diffusion.schedules import DiscreteVP
from fewstep.diffusion.solvers import Solver
from fewstep.sampling.draw import Sampler
from tests.miniature import import_miniature
from tests.pipelines import CAPTIONS

TRAILING = {"timestep_spacing": "trailing"}
V = {"prediction_type": "v_prediction"}
ZERO_SNR = {**V, "rescale_betas_zero_snr": True}


@pytest.fixture(autouse=True)
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "no")


def ddim(config: Any) -> Any:
    return d.DDIMScheduler.from_config(config, **TRAILING, clip_sample=False, set_alpha_to_one=True)


def dpm_solver(config: Any) -> Any:
    return d.DPMSolverMultistepScheduler.from_config(config, **TRAILING, final_sigmas_type="zero")


STOCK = {Solver.DDIM: ddim, Solver.DPM_SOLVER_PP_2M: dpm_solver}
CASES = [
    *(("sd", scheduler) for scheduler in ({}, V, ZERO_SNR)),
    *(("sdxl", scheduler) for scheduler in ({}, ZERO_SNR)),
    *((family, {}) for family in ("pixart", "pixart_sigma")),
]


@pytest.mark.parametrize(("family", "scheduler"), CASES)
@pytest.mark.parametrize("solver", STOCK)
def test_both_solvers_draw_stock_latents(family: str, scheduler: dict[str, Any], solver: Solver) -> None:
    """Within 1e-5 in one step and 1e-4 in several, with guidance; zero terminal SNR is no exception.

    The counts divide 1000: with others stock DDIM steps past its own grid.
    """
    backbone = import_miniature(family, **scheduler)
    assert isinstance(backbone, DiffusersBackbone)
    pipeline = getattr(d, backbone.pipeline_class).from_pretrained("stock")
    pipeline.set_progress_bar_config(disable=True)
    pipeline.scheduler = STOCK[solver](pipeline.scheduler.config)
    noise = torch.randn(2, *backbone.latent_shape, generator=torch.Generator().manual_seed(1))
    negative = None if family == "sdxl" else [""] * len(CAPTIONS)
    sampler = Sampler(open_model(TEACHER, backbone), backbone, SamplingConfig(solver=solver, guidance=3.0))
    with torch.no_grad():
        conditions = backbone.encode_prompts(CAPTIONS)
    for steps, tolerance in ((1, 1e-5), (5, 1e-4), (20, 1e-4)):
        if steps == 1 and (family, solver) == ("pixart", Solver.DPM_SOLVER_PP_2M):
            continue  # stock PixArt-alpha in one step works with DDIM alone
        theirs = backbone.stock_latents(
            pipeline, noise, steps, prompt=CAPTIONS, negative_prompt=negative, guidance_scale=3.0
        )
        ours = sampler.latents(conditions, noise, steps)
        assert theirs.std() > 0.1
        torch.testing.assert_close(ours, theirs, atol=tolerance * float(theirs.abs().max()), rtol=0)


@pytest.mark.parametrize("steps", [3, 6, 7, 30])
def test_dpm_solver_draws_stock_latents_at_any_number_of_steps(steps: int) -> None:
    backbone = import_miniature("sd", **ZERO_SNR)
    assert isinstance(backbone, DiffusersBackbone)
    pipeline = d.StableDiffusionPipeline.from_pretrained("stock")
    pipeline.set_progress_bar_config(disable=True)
    pipeline.scheduler = dpm_solver(pipeline.scheduler.config)
    noise = torch.randn(2, *backbone.latent_shape, generator=torch.Generator().manual_seed(1))
    theirs = backbone.stock_latents(pipeline, noise, steps, prompt=CAPTIONS, guidance_scale=3.0)
    with torch.no_grad():
        conditions = backbone.encode_prompts(CAPTIONS)
    sampler = Sampler(open_model(TEACHER, backbone), backbone, SamplingConfig(guidance=3.0))
    ours = sampler.latents(conditions, noise, steps)
    torch.testing.assert_close(ours, theirs, atol=1e-4 * float(theirs.abs().max()), rtol=0)


@pytest.mark.parametrize("length", [1000, 100, 999])
def test_times_are_stock_trailing_ones_for_every_number_of_steps(length: int) -> None:
    """For some counts stock schedulers have one time too many, -1; the first `steps` are compared."""
    kinds = (d.DDIMScheduler, d.DPMSolverMultistepScheduler)
    schedulers = [kind(num_train_timesteps=length, timestep_spacing="trailing") for kind in kinds]
    table = DiscreteVP(tuple(schedulers[0].alphas_cumprod.double().tolist()))
    backbone = DiffusersBackbone({}, table, Prediction.EPSILON)
    for steps in range(1, length + 1):
        times = backbone.times(steps)
        assert len(times) == steps + 1 and times[0] == 1.0 and times[-1] == 0.0
        assert all(t > s for t, s in pairwise(times))
        for scheduler in schedulers:
            scheduler.set_timesteps(steps)
            first, rest = scheduler.timesteps[:steps].tolist(), scheduler.timesteps[steps:].tolist()
            assert first == [round(length * t) - 1 for t in times[:-1]]
            assert rest in ([], [-1])


def test_the_time_power_moves_steps_to_where_there_is_more_noise(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[list[float]] = []
    backbone = import_miniature("sd")
    noise = torch.randn(1, *backbone.latent_shape)
    conditions = backbone.encode_prompts(CAPTIONS[:1])

    def solve(solver: Solver, denoise: Any, x: torch.Tensor, times: list[float], *rest: Any) -> torch.Tensor:
        seen.append(times)
        return x

    monkeypatch.setattr("fewstep.sampling.draw.solve", solve)
    triplets = TripletsConfig(prompts=Path("x"), count=1, groups=(0,), shard_size=1, steps=4, time_power=0.5)
    plain = SamplingConfig(steps=9)
    for sampling in (plain, triplets.sampling(plain)):
        Sampler(open_model(TEACHER, backbone), backbone, sampling).latents(conditions, noise, sampling.steps)
    assert seen[0] == backbone.times(9)
    assert seen[1] == [t**0.5 for t in backbone.times(4)] == pytest.approx([1, 0.75**0.5, 0.5**0.5, 0.5, 0])
    same = triplets.model_copy(update={"time_power": None}).sampling(plain)
    assert same == SamplingConfig(steps=4)
