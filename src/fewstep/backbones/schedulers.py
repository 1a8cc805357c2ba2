"""Converts diffusers' schedulers to noise schedules; lists the schedulers and settings that are supported."""

import math
from collections.abc import Iterator, Mapping
from inspect import signature
from pathlib import Path
from typing import Any

from fewstep.backbones.configurations import fault
from fewstep.diffusion.denoiser import Prediction
from fewstep.diffusion.schedules import DiscreteVP, RectifiedFlow, Schedule

VP_SCHEDULERS = (
    "DDIMScheduler",
    "DDPMScheduler",
    "PNDMScheduler",
    "LMSDiscreteScheduler",
    "EulerDiscreteScheduler",
    "EulerAncestralDiscreteScheduler",
    "HeunDiscreteScheduler",
    "KDPM2DiscreteScheduler",
    "KDPM2AncestralDiscreteScheduler",
    "DEISMultistepScheduler",
    "UniPCMultistepScheduler",
    "DPMSolverMultistepScheduler",
    "DPMSolverSinglestepScheduler",
    "DPMSolverSDEScheduler",
    "DDIMParallelScheduler",
    "DDPMParallelScheduler",
    "SASolverScheduler",
)
"""Solvers that share one kind of noise schedule: a table of betas."""
FLOW_MATCH = "FlowMatchEulerDiscreteScheduler"
FLOW_SOLVERS = ("DPMSolverMultistepScheduler", "UniPCMultistepScheduler", "DEISMultistepScheduler")
"""Schedulers that solve a rectified flow if `use_flow_sigmas` is set."""
VP_PREDICTIONS = (Prediction.EPSILON, Prediction.SAMPLE, Prediction.V)
BETA_SCHEDULES = ("linear", "scaled_linear", "squaredcos_cap_v2")
"""Beta schedules that every scheduler of diffusers computes alike."""
DEFAULTS = ("num_train_timesteps", "beta_start", "beta_end", "beta_schedule", "prediction_type")
"""Settings of a table of betas whose defaults depend on the class."""
TABLE = (*DEFAULTS, "trained_betas", "rescale_betas_zero_snr")
"""All settings of a table of betas and of its network's prediction."""
OBSOLETE = ("tensor_format", "timestep_values", "predict_epsilon")
"""Keys of old files that no scheduler reads any more."""
OTHER_MODELS = {
    "EDM": "its network takes time and input scaled as in Karras et al. 2022",
    "LCM": "a consistency model has no ODE for a student to follow; take the model it was distilled from",
    "TCD": "a consistency model has no ODE for a student to follow; take the model it was distilled from",
    "VQ": "diffusion of discrete tokens is not supported",
    "ScoreSde": "variance-exploding schedules are not supported",
    "FlowMatch": "a rectified flow does not fit this family's stock pipeline",
}


def is_flow(scheduler: Mapping[str, Any]) -> bool:
    """Whether a diffusers scheduler is for rectified flows."""
    return "FlowMatch" in str(scheduler.get("_class_name")) or bool(scheduler.get("use_flow_sigmas"))


def schedule_of(scheduler: Mapping[str, Any]) -> tuple[Schedule, Prediction]:
    """The noise schedule and prediction type in a diffusers scheduler's configuration.

    Settings that it leaves out have the defaults of its class. Raises ValueError for one that
    `scheduler_faults` refuses.
    """
    if is_flow(scheduler):
        return RectifiedFlow(), Prediction.FLOW
    from diffusers import DDIMScheduler

    written = {key: scheduler[key] for key in TABLE if key in scheduler}
    known = DDIMScheduler(**{**defaults(scheduler), **written})
    return DiscreteVP(tuple(known.alphas_cumprod.double().tolist())), Prediction(known.config.prediction_type)


def defaults(scheduler: Mapping[str, Any]) -> dict[str, Any]:
    """What the scheduler's class takes for the settings in `DEFAULTS` that its configuration leaves out."""
    missing = [key for key in DEFAULTS if key not in scheduler]
    if not missing:
        return {}
    import diffusers

    kind = getattr(diffusers, str(scheduler.get("_class_name")), diffusers.DDIMScheduler)
    parameters = signature(kind.__init__).parameters
    return {key: parameters[key].default for key in missing if key in parameters}


def flow_times(scheduler: Any, steps: int, shift: float | None = None) -> list[float]:
    """`steps + 1` times spaced by a rectified flow's scheduler, except that the first is pure noise, 1.

    Stock DPM-Solver starts at 0.9997, and truncates the time that the network receives to multiples of
    1/1000. shift: `mu` of a scheduler with dynamic shifting.
    """
    dynamic = scheduler.config.get("use_dynamic_shifting") and shift is not None
    scheduler.set_timesteps(steps, **({"mu": shift} if dynamic else {}))
    return [1.0, *scheduler.sigmas[1:].double().tolist()]


def scheduler_faults(
    scheduler: Mapping[str, Any], allowed: tuple[str, ...], dynamic: bool, file: Path
) -> Iterator[str]:
    """Faults of a scheduler's configuration: its class, and settings that are not supported.

    allowed: scheduler classes of the family. dynamic: whether its stock pipeline shifts times by image size.
    """
    name = scheduler.get("_class_name")
    if name not in allowed:
        why = next((text for key, text in OTHER_MODELS.items() if str(name).startswith(key)), None)
        takes = f"this family takes {', '.join(allowed[:6])}{' and others' if allowed[6:] else ''}"
        yield fault(file, "_class_name", name, f"{why}; {takes}" if why else takes)
        return
    yield from unknown_keys(scheduler, allowed, file)
    if not isinstance(scheduler.get("num_train_timesteps", 1000), int):
        yield fault(file, "num_train_timesteps", scheduler["num_train_timesteps"], "expected a whole number")
    elif name == FLOW_MATCH or scheduler.get("use_flow_sigmas"):
        yield from flow_faults(scheduler, dynamic, file)
    elif FLOW_MATCH in allowed:
        yield fault(
            file, "use_flow_sigmas", scheduler.get("use_flow_sigmas"), "this family is a rectified flow"
        )
    else:
        yield from table_faults(scheduler, file)


def unknown_keys(scheduler: Mapping[str, Any], allowed: tuple[str, ...], file: Path) -> Iterator[str]:
    """Settings that no supported scheduler reads; those of another supported scheduler are harmless."""
    import diffusers

    kinds = [getattr(diffusers, name) for name in {*allowed, *VP_SCHEDULERS}]
    known = {name for kind in kinds for name in signature(kind.__init__).parameters} | {*OBSOLETE}
    for key, value in scheduler.items():
        if not key.startswith("_") and key not in known and value not in (None, False):
            yield fault(
                file, key, value, "no scheduler of this family reads it; remove it if it changes nothing"
            )
    if scheduler.get("predict_epsilon") is False:
        yield fault(
            file, "predict_epsilon", False, "no longer read; write prediction_type: sample in its place"
        )


def flow_faults(scheduler: Mapping[str, Any], dynamic: bool, file: Path) -> Iterator[str]:
    """Faults of a rectified flow's settings; `shift` and the sigma spacings are supported."""
    fixed: dict[str, tuple[Any, str]] = {
        "num_train_timesteps": (1000, "the network receives 1000 times the time"),
        "invert_sigmas": (False, "time would run in the opposite direction"),
        "stochastic_sampling": (False, "students follow an ODE; set false"),
        "shift_terminal": (None, "the path would not end at an image; set null"),
    }
    if not dynamic:
        fixed["use_dynamic_shifting"] = (False, "this family's stock pipeline shifts by `shift` alone")
    for key, (value, why) in fixed.items():
        if scheduler.get(key, value) != value and scheduler.get(key) is not None:
            yield fault(file, key, scheduler[key], why)
    usual = "flow_prediction" if scheduler["_class_name"] == FLOW_MATCH else "epsilon"
    prediction = scheduler.get("prediction_type", usual)
    if prediction != "flow_prediction":
        yield fault(file, "prediction_type", prediction, "contradicts use_flow_sigmas; write flow_prediction")
    if scheduler.get("time_shift_type", "exponential") not in ("exponential", "linear"):
        yield fault(file, "time_shift_type", scheduler["time_shift_type"], "expected exponential or linear")
    for key in ("shift", "flow_shift"):
        if not positive(scheduler.get(key, 1.0)):
            yield fault(file, key, scheduler[key], "expected a positive number")


def table_faults(scheduler: Mapping[str, Any], file: Path) -> Iterator[str]:
    """Faults of the settings of a table of betas, and of the prediction type."""
    prediction = scheduler.get("prediction_type", "epsilon")
    if prediction not in VP_PREDICTIONS:
        yield fault(file, "prediction_type", prediction, f"expected one of {', '.join(VP_PREDICTIONS)}")
    if scheduler.get("timestep_type", "discrete") != "discrete":
        yield fault(file, "timestep_type", scheduler["timestep_type"], "the network takes another time unit")
    betas, count = scheduler.get("trained_betas"), scheduler.get("num_train_timesteps", 1000)
    if betas is None and scheduler.get("beta_schedule", "linear") not in BETA_SCHEDULES:
        known = ", ".join(BETA_SCHEDULES)
        why = f"expected one of {known}; write the numbers of another as trained_betas"
        yield fault(file, "beta_schedule", scheduler["beta_schedule"], why)
        return
    if betas is not None and (not isinstance(betas, list) or len(betas) != count):
        yield fault(file, "trained_betas", betas, f"expected as many numbers as num_train_timesteps, {count}")
        return
    at = "trained_betas" if betas is not None else "beta_end"
    try:
        schedule, _ = schedule_of({**scheduler, "prediction_type": Prediction.EPSILON})
    except (ValueError, TypeError, RuntimeError, NotImplementedError) as error:
        yield fault(file, at, scheduler.get(at), f"these betas make no schedule: {error}")
        return
    assert isinstance(schedule, DiscreteVP)
    if not all(math.isfinite(value) for value in schedule.alphas_cumprod):
        yield fault(file, at, scheduler.get(at), "these betas make no schedule: not all are finite")
    elif schedule.alphas_cumprod[-1] == 0 and prediction == Prediction.EPSILON:
        at = "rescale_betas_zero_snr" if scheduler.get("rescale_betas_zero_snr") else at
        why = "an epsilon-prediction does not determine the image at pure noise"
        remedy = "set it to false, or set import_teacher.prediction: v_prediction if that is what it predicts"
        yield fault(file, at, scheduler.get(at), f"{why}; {remedy}")


def positive(value: Any) -> bool:
    """Whether a value is a positive, finite number."""
    return isinstance(value, (int, float)) and math.isfinite(value) and value > 0
