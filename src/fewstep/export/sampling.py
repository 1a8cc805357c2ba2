"""How stock diffusers draws what a model of the chain draws: a scheduler, and the arguments of the call."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from diffusers import DDIMScheduler, EulerDiscreteScheduler, FlowMatchEulerDiscreteScheduler

from fewstep.backbones.pipeline import is_flow
from fewstep.diffusion.denoiser import Denoiser, Prediction
from fewstep.diffusion.schedules import DiscreteVP, RectifiedFlow, Schedule
from fewstep.diffusion.solvers import trailing
from fewstep.errors import UserError


@dataclass(frozen=True)
class StockSampling:
    """scheduler: of diffusers, configured. call: arguments of the pipeline beside the prompt."""

    scheduler: Any
    call: Mapping[str, Any]


def stock_sampling(name: str, denoiser: Denoiser, steps: int, scheduler: Mapping[str, Any]) -> StockSampling:
    """The model's own steps by a stock scheduler; scheduler: configuration of its teacher's.

    - A flow on the straight path: Euler.
    - A table's network in one step, or on its own path in a number of steps that divides the table (with
      others stock DDIM leaves its own grid): DDIM with `trailing` spacing.
    - Else DDIM steps at angles between the table's entries. Divided by alpha, DDIM is Euler's method in
      `sigma / alpha` (Song et al. 2021, eq. 14), so Euler with explicit sigmas takes them; `leading` lets it
      start from noise at the table's last entry, as the model does.

    Raises UserError, with `name`, where diffusers has none.
    """
    flow = is_flow(scheduler)
    match denoiser.schedule, denoiser.path, denoiser.prediction:
        case RectifiedFlow(), RectifiedFlow(), Prediction.FLOW if flow:
            call = {"num_inference_steps": 1} if steps == 1 else {"sigmas": trailing(steps)[:-1]}
            return StockSampling(FlowMatchEulerDiscreteScheduler(shift=1.0), call)
        case DiscreteVP() as table, path, _ if steps == 1 or (path == table and divides(steps, table)):
            own = {"timestep_spacing": "trailing", "set_alpha_to_one": True, "clip_sample": False}
            return StockSampling(
                DDIMScheduler.from_config(scheduler, **own, thresholding=False, steps_offset=1),
                {"num_inference_steps": steps},
            )
        case DiscreteVP() as table, path, (Prediction.EPSILON | Prediction.V):
            plain = {f"use_{kind}_sigmas": False for kind in ("karras", "exponential", "beta")}
            return StockSampling(
                EulerDiscreteScheduler.from_config(
                    scheduler, timestep_spacing="leading", timestep_type="discrete", **plain
                ),
                {"sigmas": ratios(table, path, steps)},
            )
    raise UserError(
        f"export.{name}: no scheduler of diffusers draws with a {denoiser.prediction} network of "
        f"{type(denoiser.schedule).__name__} on {type(denoiser.path).__name__} in this family's pipeline; a "
        "network retrained as a velocity (`init: raw`) needs one of its own, `init: exact` does not"
    )


def divides(steps: int, table: DiscreteVP) -> bool:
    """Whether equally spaced steps fall on the table's entries."""
    return len(table.alphas_cumprod) % steps == 0


def ratios(table: DiscreteVP, path: Schedule, steps: int) -> list[float]:
    """`sigma / alpha` at the path's trailing times, no noisier than the table's end, and the final 0."""
    angles = path.angle(torch.tensor(trailing(steps)[:-1], dtype=torch.float64))
    # At zero terminal SNR diffusers puts 2^-24 for the table's last entry.
    last = math.acos(math.sqrt(max(table.alphas_cumprod[-1], 2**-24)))
    return [*torch.tan(angles.clamp(max=last)).tolist(), 0.0]
