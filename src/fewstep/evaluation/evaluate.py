"""Measures one model at its step counts, on the evaluation set."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from fewstep.data.noise import noise_of
from fewstep.data.pixels import from_uint8
from fewstep.diffusion.schedules import RectifiedFlow
from fewstep.diffusion.solvers import straightness
from fewstep.evaluation.accuracy import PromptAccuracy, prompt_accuracy
from fewstep.evaluation.agreement import teacher_rmse, teacher_similarity
from fewstep.evaluation.evaluation_set import EvaluationSet, draw, features_of_uint8
from fewstep.evaluation.frechet import demand_enough, frechet_distance, kernel_distance
from fewstep.evaluation.precision_recall import precision_recall
from fewstep.evaluation.schema import Metrics, Speed, SpeedLog, StepMetrics
from fewstep.evaluation.speed import machine, measure_speed, memory_counter
from fewstep.features.judge import Judge
from fewstep.features.network import FeatureNetwork
from fewstep.hardware import computing, device, pictures_at_once
from fewstep.keyed import Key
from fewstep.sampling.draw import Sampler

STRAIGHTNESS_PICTURES = 64


def measure(
    sampler: Sampler, identity: str, steps: Sequence[int], on: EvaluationSet, features: FeatureNetwork
) -> tuple[Metrics, dict[int, Tensor]]:
    """The model's figures, and its pictures per step count, uint8 `[N, H, W, 3]`."""
    demand_enough(len(on.prompts), *on.reference.shape)
    pictures = {n: pictures_of(sampler, on, n) for n in steps}
    metrics = Metrics(
        model=sampler.model.name,
        manifest=identity,
        pictures=len(on.prompts),
        reference=len(on.reference),
        features=features.name,
        guidance=sampler.guidance,
        parameters=sampler.model.parameters,
        straightness=model_straightness(sampler, on),
        steps={str(n): step_metrics(sampler, n, pictures[n], on, features) for n in steps},
    )
    return metrics, pictures


def pictures_of(sampler: Sampler, on: EvaluationSet, steps: int) -> Tensor:
    """Drawn now, unless they are the teacher's own that the set already holds."""
    if sampler.model.is_teacher and steps == sampler.sampling.steps:
        return on.teacher
    return draw(sampler, on.prompts, steps)


def step_metrics(
    sampler: Sampler, steps: int, pixels: Tensor, on: EvaluationSet, features: FeatureNetwork
) -> StepMetrics:
    """All figures of one step count."""
    found = features_of_uint8(features, pixels)
    accuracy = judged(features, pixels, on)
    closeness = precision_recall(found, on.reference)
    return StepMetrics(
        nfe=sampler.evaluations(steps),
        prompt_accuracy=accuracy.prompt if accuracy else None,
        attributes=accuracy.attributes if accuracy else None,
        frechet_distance=frechet_distance(
            found, on.reference, Key(on.prompts.noise.seed, "evaluation/bootstrap")
        ),
        kernel_distance=kernel_distance(found, on.reference),
        precision=closeness.precision,
        recall=closeness.recall,
        teacher_rmse=teacher_rmse(from_uint8(pixels), from_uint8(on.teacher)),
        teacher_similarity=teacher_similarity(found, on.teacher_features),
        flops_per_picture=flops(sampler, steps, on.prompts.prompts[0]),
    )


def judged(features: FeatureNetwork, pixels: Tensor, on: EvaluationSet) -> PromptAccuracy | None:
    """Prompt accuracy, where the features are a judge's and the prompts are labelled."""
    if not isinstance(features, Judge):
        return None
    seen = [
        labels
        for part in torch.split(pixels, pictures_at_once())
        for labels in features.recognise(from_uint8(part).to(device()))
    ]
    return prompt_accuracy(seen, on.prompts.labels)


@torch.no_grad()
def model_straightness(sampler: Sampler, on: EvaluationSet) -> float:
    """Of the model's flow, guidance included, over the first prompts."""
    flow = RectifiedFlow()
    count = min(STRAIGHTNESS_PICTURES, len(on.prompts))
    noise = noise_of(on.prompts.noise, range(count), sampler.backbone.latent_shape).to(device())
    with computing():
        conditions = sampler.backbone.encode_prompts(on.prompts.prompts[:count])
        return straightness(sampler.on(flow).denoise(), noise, conditions, flow).mean().item()


def flops(sampler: Sampler, steps: int, prompt: str) -> float:
    """Floating-point operations of one picture, decoding included: the machine-independent cost."""
    with FlopCounterMode(display=False) as counter:
        draw_plain(sampler, 1, steps, prompt)
    return float(counter.get_total_flops())


def draw_plain(sampler: Sampler, pictures: int, steps: int, prompt: str) -> Tensor:
    """Pictures of one prompt: enough for their cost."""
    noise = noise_of(Key(0, "speed"), range(pictures), sampler.backbone.latent_shape).to(device())
    with torch.no_grad(), computing():
        conditions = sampler.backbone.encode_prompts([prompt] * pictures)
    return sampler.pictures(conditions, noise, steps)


def speed_log(
    sampler: Sampler, steps: Sequence[int], prompt: str, batch_size: int, seconds: float
) -> SpeedLog:
    """How fast this machine draws with the model."""

    def speed(n: int) -> Speed:
        return measure_speed(
            lambda pictures: draw_plain(sampler, pictures, n, prompt), batch_size, device(), seconds
        )

    return SpeedLog(
        model=sampler.model.name,
        machine=machine(device()),
        device=str(device()),
        memory_counter=memory_counter(device()),
        batch_size=batch_size,
        steps={str(n): speed(n) for n in steps},
    )
