"""Measures one model at its step counts, on the evaluation set."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from fewstep.backbones.prompts import encode_distinct
from fewstep.core.hardware import autocast, device
from fewstep.core.keyed import Key
from fewstep.core.paths import TEACHER
from fewstep.data.noise import fresh_noise, noise_of
from fewstep.data.pixels import from_uint8
from fewstep.diffusion.denoiser import Conditions
from fewstep.diffusion.schedules import RectifiedFlow
from fewstep.diffusion.solvers import Fresh, straightness
from fewstep.evaluation.agreement import teacher_rmse, teacher_similarity
from fewstep.evaluation.evaluation_set import EvaluationSet, draw
from fewstep.evaluation.figures import figures
from fewstep.evaluation.flags import flags
from fewstep.evaluation.frechet import frechet_distance
from fewstep.evaluation.kernel import compare
from fewstep.evaluation.observations import Observations, observe
from fewstep.evaluation.schema import Metrics, Speed, SpeedLog, StepMetrics
from fewstep.evaluation.speed import machine, measure_speed, median_seconds, memory_counter
from fewstep.features.network import FeatureNetwork
from fewstep.sampling.draw import Sampler

STRAIGHTNESS_IMAGES = 64
STRAIGHTNESS_STEPS = 16
"""Times at which the flow's straightness is measured; a model trained for N steps is measured at its N."""


def measure(
    sampler: Sampler, identity: str, steps: Sequence[int], on: EvaluationSet, network: FeatureNetwork
) -> tuple[Metrics, dict[int, Tensor]]:
    """The model's figures, and an image per prompt for each step count, uint8 `[N, H, W, 3]`."""
    images = images_of(sampler, on, steps)
    metrics = Metrics(
        model=sampler.model.name,
        manifest=identity,
        pictures=on.prompts.main,
        reference=len(on.yardstick.reference),
        features=network.name,
        guidance=sampler.guidance,
        parameters=sampler.model.parameters,
        straightness=model_straightness(sampler, on),
        steps={str(n): step_metrics(sampler, n, images[n], on, network) for n in steps},
    )
    return metrics, {n: pixels[: on.prompts.main] for n, pixels in images.items()}


def images_of(sampler: Sampler, on: EvaluationSet, steps: Sequence[int]) -> dict[int, Tensor]:
    """Step count -> images, drawn now, except the teacher's images that the set already contains."""
    held = {on.reference.teacher_steps: on.teacher} if sampler.model.name == TEACHER.name else {}
    missing = [n for n in steps if n not in held]
    if missing:
        encoded = encode_distinct(sampler.backbone, on.prompts.prompts)
        held |= {n: draw(sampler, on.prompts, encoded, n) for n in missing}
    return {n: held[n] for n in steps}


def step_metrics(
    sampler: Sampler, steps: int, pixels: Tensor, on: EvaluationSet, network: FeatureNetwork
) -> StepMetrics:
    """All figures of one step count."""
    seen = observe(pixels, network, on.prompts.prompts)
    measured = figures(seen, on.yardstick)
    return StepMetrics(
        **dict(measured),
        **against_teacher(seen, pixels, on),
        nfe=sampler.evaluations(steps),
        flops_per_picture=flops(sampler, steps, on.prompts.prompts[0]),
        flags=tuple(flags(measured, on.reference)),
    )


def against_teacher(seen: Observations, pixels: Tensor, on: EvaluationSet) -> dict[str, Any]:
    """The figures that compare with the teacher's images of the same prompts and noise."""
    rows = range(on.prompts.main)
    mine, theirs, real = seen.rows(rows), on.teacher_seen.rows(rows), on.yardstick.real
    by_features = compare([mine.features, theirs.features], real.features, on.yardstick.kernel)
    return {
        "kernel_ratio": by_features.ratio(0, 1),
        "layout_ratio": compare([mine.layout, theirs.layout], real.layout).ratio(0, 1),
        "teacher_kernel_distance": compare([mine.features], theirs.features, on.yardstick.kernel).distance(),
        "teacher_frechet_distance": frechet_distance(mine.features, theirs.features),
        "teacher_rmse": teacher_rmse(from_uint8(pixels[: len(rows)]), from_uint8(on.teacher[: len(rows)])),
        "teacher_similarity": teacher_similarity(mine.features, theirs.features),
    }


@torch.no_grad()
def model_straightness(sampler: Sampler, on: EvaluationSet) -> float | None:
    """Straightness of the model's flow, guidance included, over the first prompts.

    None where it was trained at t = 1 only.
    """
    if not sampler.model.has_flow:
        return None
    flow = RectifiedFlow()
    count = min(STRAIGHTNESS_IMAGES, on.prompts.main)
    noise = noise_of(on.prompts.noise, range(count), sampler.backbone.latent_shape).to(device())
    with autocast():
        conditions = sampler.backbone.encode_prompts(on.prompts.prompts[:count])
        steps = sampler.model.steps or STRAIGHTNESS_STEPS
        return straightness(sampler.on(flow).denoise(), noise, conditions, flow, steps).mean().item()


def flops(sampler: Sampler, steps: int, prompt: str) -> float:
    """Floating-point operations of one image, decoding included: the machine-independent cost."""
    with FlopCounterMode(display=False) as counter:
        draw_plain(sampler, 1, steps, prompt)
    return float(counter.get_total_flops())


def draw_plain(sampler: Sampler, images: int, steps: int, prompt: str) -> Tensor:
    """Images of one prompt, drawn only to measure their cost."""
    noise, fresh = noise_for_speed(sampler, images)
    return sampler.images(encode_plain(sampler, images, prompt), noise, steps, fresh)


def parts_of_an_image(sampler: Sampler, steps: int, prompt: str) -> dict[str, Callable[[int], object]]:
    """Field of `Speed` -> the part of `draw_plain` whose seconds it has, as a function of the images."""
    noise, fresh = noise_for_speed(sampler, 1)
    conditions = encode_plain(sampler, 1, prompt)
    latents = sampler.latents(conditions, noise, steps, fresh)
    return {
        "text_s": lambda images: encode_plain(sampler, images, prompt),
        "denoiser_s": lambda images: sampler.latents(conditions, noise, steps, fresh),
        "decoder_s": lambda images: sampler.decode(latents),
    }


def noise_for_speed(sampler: Sampler, images: int) -> tuple[Tensor, Fresh]:
    """Noise of these images, and the noise that their steps add."""
    key, indices, shape = Key(0, "speed"), range(images), sampler.backbone.latent_shape
    return noise_of(key, indices, shape).to(device()), fresh_noise(key, indices, shape, device())


def encode_plain(sampler: Sampler, images: int, prompt: str) -> Conditions:
    """The prompt's conditions, encoded once per image."""
    with torch.no_grad(), autocast():
        return sampler.backbone.encode_prompts([prompt] * images)


def speed_log(
    sampler: Sampler, steps: Sequence[int], prompt: str, batch_size: int, seconds: float
) -> SpeedLog:
    """Sampling speed of the model on this machine."""

    def speed(n: int) -> Speed:
        whole = measure_speed(
            lambda images: draw_plain(sampler, images, n, prompt), batch_size, device(), seconds
        )
        parts = parts_of_an_image(sampler, n, prompt)
        each = {name: median_seconds(part, 1, seconds / len(parts)) for name, part in parts.items()}
        return whole.model_copy(update=each)

    return SpeedLog(
        model=sampler.model.name,
        machine=machine(device()),
        device=str(device()),
        memory_counter=memory_counter(device()),
        batch_size=batch_size,
        steps={str(n): speed(n) for n in steps},
    )
