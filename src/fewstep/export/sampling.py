"""Stock diffusers scheduler and call arguments that sample as a model of the chain does."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from diffusers import (
    DDIMScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    FlowMatchLCMScheduler,
    LCMScheduler,
)
from torch import Tensor

from fewstep.backbones.pipeline import is_flow
from fewstep.core.errors import UserError
from fewstep.diffusion.denoiser import END_TIME, Denoiser, Prediction
from fewstep.diffusion.sampling import Sampling
from fewstep.diffusion.schedules import DiscreteVP, RectifiedFlow, Schedule
from fewstep.diffusion.solvers import Solver, trailing


@dataclass(frozen=True)
class StockSampling:
    """scheduler: a configured diffusers scheduler. call: arguments of the pipeline except the prompt."""

    scheduler: Any
    call: Mapping[str, Any]


def stock_sampling(
    name: str, denoiser: Denoiser, record: Sampling, steps: int, scheduler: Mapping[str, Any]
) -> StockSampling:
    """A stock scheduler that takes the model's steps; scheduler: configuration of the teacher's scheduler.

    - A rectified flow on the straight path: Euler.
    - A network with a table of betas, in one step, or on its own path in a number of steps that divides the
      table: DDIM with `trailing` spacing. With other step counts stock DDIM leaves its own grid.
    - Otherwise: DDIM steps at angles between the table's entries. Divided by alpha, DDIM is Euler's method in
      `sigma / alpha` (Song et al. 2021, eq. 14), so Euler with explicit sigmas takes these steps. With
      `leading` spacing it starts from noise at the table's last entry, as the model does. A v-prediction that
      starts from pure noise is rotated first, see `turn`.

    Raises UserError, with `name`, if diffusers has no such scheduler.
    """
    if END_TIME in denoiser.inputs:
        raise UserError(
            f"export.{name}: no diffusers pipeline passes its network the end time of a step; take "
            f"export.{name}.steps: 1, where it is always 0"
        )
    if record.follows_params:
        raise UserError(
            f"export.{name}: is sampled as its teacher is, with the section `sampling`; load "
            f"artifacts/models/{name}/net into the teacher's pipeline, or export a student of it"
        )
    flow = is_flow(scheduler)
    own_times = bool(record.times) and record.grid(steps) != trailing(steps)
    if record.solver is Solver.RENOISE and (steps > 1 or own_times):
        return renoising(name, denoiser, record.grid(steps), scheduler, flow)
    if own_times:
        raise UserError(f"export.{name}: no scheduler of diffusers takes DDIM steps at the model's times")
    match denoiser.schedule, denoiser.path, denoiser.prediction:
        case RectifiedFlow(), RectifiedFlow(), Prediction.FLOW if flow:
            call = {"num_inference_steps": 1} if steps == 1 else {"sigmas": trailing(steps)[:-1]}
            return StockSampling(FlowMatchEulerDiscreteScheduler(shift=1.0), call)
        case DiscreteVP() as table, path, _ if steps == 1 or (path == table and divides(steps, table)):
            options = {"timestep_spacing": "trailing", "set_alpha_to_one": True, "clip_sample": False}
            return StockSampling(
                DDIMScheduler.from_config(scheduler, **options, thresholding=False, steps_offset=1),
                {"num_inference_steps": steps},
            )
        case DiscreteVP() as table, path, (Prediction.EPSILON | Prediction.V) as prediction:
            plain = {f"use_{kind}_sigmas": False for kind in ("karras", "exponential", "beta")}
            by = turn(table) if prediction == Prediction.V else 0.0
            sigmas = ratios(table, path, steps, by)
            if sigmas[1] == sigmas[0]:
                raise UserError(
                    f"export.{name}.steps = {steps}: two of them start beyond the noisiest entry of the "
                    "teacher's table, which no scheduler of diffusers does; take fewer"
                )
            options = (
                {"trained_betas": turned_betas(table, by), "rescale_betas_zero_snr": False} if by else {}
            )
            return StockSampling(
                EulerDiscreteScheduler.from_config(
                    scheduler, timestep_spacing="leading", timestep_type="discrete", **plain, **options
                ),
                {"sigmas": sigmas},
            )
    raise UserError(
        f"export.{name}: no scheduler of diffusers draws with a {denoiser.prediction} network of "
        f"{type(denoiser.schedule).__name__} on {type(denoiser.path).__name__} in this family's pipeline; a "
        "network retrained as a velocity (`init: raw`) needs one of its own, `init: exact` does not"
    )


def renoising(
    name: str, denoiser: Denoiser, times: Sequence[float], scheduler: Mapping[str, Any], flow: bool
) -> StockSampling:
    """Re-noising steps at these times: diffusers' LCM schedulers, which get the times explicitly.

    `LCMScheduler` scales its outputs at the boundary, by less than 1e-4 at these times.
    Raises UserError, with `name`, if the path is not the network's own or a time is between its table's
    entries.
    """
    match denoiser.schedule, denoiser.prediction:
        case RectifiedFlow(), Prediction.FLOW if (
            # Earlier than at 1 the stock scheduler would start from noise of another scale than the model.
            flow and denoiser.path == denoiser.schedule and times[0] == 1
        ):
            return StockSampling(FlowMatchLCMScheduler(shift=1.0), {"sigmas": list(times[:-1])})
        case DiscreteVP() as table, _ if denoiser.path == table:
            entries = [t * len(table.alphas_cumprod) for t in times[:-1]]
            if all(abs(entry - round(entry)) < 1e-6 for entry in entries):
                options = {"clip_sample": False, "thresholding": False, "set_alpha_to_one": True}
                timesteps = [round(entry) - 1 for entry in entries]
                return StockSampling(LCMScheduler.from_config(scheduler, **options), {"timesteps": timesteps})
    shown = ", ".join(f"{t:g}" for t in times[:-1])
    raise UserError(
        f"export.{name}: no scheduler of diffusers adds fresh noise at the times {shown} of "
        f"{type(denoiser.path).__name__}; the steps must divide the table of the network's own path"
    )


def demand_stock_pipeline(name: str, pipeline: str, call: Mapping[str, Any], net: Mapping[str, Any]) -> None:
    """Raises UserError, with `name`, where the family's stock pipeline does not take the call.

    pipeline: its class. net: configuration of the denoiser.
    """
    if pipeline == "DDPMPipeline" and ("sigmas" in call or net.get("num_class_embeds")):
        raise UserError(
            f"export.{name}: the stock DDIMPipeline knows no classes, and only steps that divide its "
            "table, on its own path; export the model at one step, or draw with it by `fewstep sample`"
        )


def divides(steps: int, table: DiscreteVP) -> bool:
    """Whether equally spaced steps fall on the table's entries."""
    return len(table.alphas_cumprod) % steps == 0


def turn(table: DiscreteVP) -> float:
    """Angle by which a v-prediction's path is rotated back, so that `sigma / alpha` starts at 256 at most.

    At pure noise the ratio is infinite. diffusers would start at 4096, unlike the model, and float32 would
    have four digits left. A DDIM step of a v-prediction is a rotation by the difference of two angles,
    `cos(t - s) x_t - sin(t - s) v` (Salimans & Ho 2022, appendix D). It is therefore the same step after a
    common rotation of both angles, as long as the network receives its original time. The last step then
    ends at a small negative ratio, and the result is too large by a relative 8e-6.
    """
    first, last = angles(table)[[0, -1]].tolist()
    return min(max(last - math.atan(256), 0.0), first / 2)


def turned_betas(table: DiscreteVP, by: float) -> list[float]:
    """Betas of the table rotated back by `by`: diffusers maps rotated ratios to the original times."""
    alphas_cumprod = torch.cos(angles(table) - by).square()
    before = torch.cat([torch.ones(1, dtype=torch.float64), alphas_cumprod[:-1]])
    return (1 - alphas_cumprod / before).tolist()


def ratios(table: DiscreteVP, path: Schedule, steps: int, by: float) -> list[float]:
    """`sigma / alpha` at the path's trailing times, clamped to the table's end, rotated back by `by`."""
    times = torch.tensor(trailing(steps), dtype=torch.float64)
    return torch.tan(path.angle(times).clamp(max=float(angles(table)[-1])) - by).tolist()


def angles(table: DiscreteVP) -> Tensor:
    """Angles of the table's entries, `acos(alpha)`, float64."""
    return torch.acos(torch.tensor(table.alphas_cumprod, dtype=torch.float64).sqrt())
