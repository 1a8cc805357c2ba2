"""The model card of an export: what it is, how to call it, what was measured, where it comes from."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCard, ModelCardData

from fewstep.artifacts.manifest import NAME
from fewstep.backbones.model import Model
from fewstep.core.files import read_json
from fewstep.evaluation.plain_text import interval_text, ratio_text
from fewstep.evaluation.schema import Metrics


def model_card(
    model: Model,
    folder: Path,
    teacher: Path,
    pipeline: str,
    call: Mapping[str, Any],
    metrics: Metrics | None,
    guidance: float | None,
) -> ModelCard:
    """The model card of an export, deterministic. The licence is the teacher's.

    guidance: the scale at which an input for guidance was fixed, if it was.
    """
    made, origin = read_json(folder / NAME), read_json(teacher / NAME)["facts"]
    licence, source = origin.get("licence"), origin.get("origin")
    data = ModelCardData(
        library_name="diffusers",
        license=licence,
        base_model=source["repository"] if source else None,
        tags=["few-step", "distillation", made["facts"].get("method", "teacher")],
    )
    steps = counted(model.steps) if model.steps else "any number of steps"
    arguments = ", ".join(f"{name}={value!r}" for name, value in call.items())
    prompt = "" if pipeline == "DDIMPipeline" else '"a small red star on a blue background", '
    lines = [
        f"# {model.name}",
        "",
        f"A diffusion model for {steps}, distilled by fewstep with the method "
        f"`{made['facts'].get('method', 'none')}`; {model.parameters:,} parameters in its denoiser.",
        "",
        "```python",
        f"from diffusers import {pipeline}",
        f'pipe = {pipeline}.from_pretrained("{model.name}")',
        f"pipe({prompt}{arguments}).images[0]",
        "```",
        "",
        guidance_of(model, guidance) if prompt else "",
        "",
        *measured(metrics),
        "## Lineage",
        "",
        *(f"- `{name}`: `{digest}`" for name, digest in sorted(made["made_from"].items())),
        f"- the teacher came from `{json.dumps(source)}`" if source else "",
        "",
        f"Licence: {licence}, the teacher's." if licence else "The teacher names no licence.",
    ]
    return ModelCard(f"---\n{data.to_yaml()}\n---\n\n" + "\n".join(lines) + "\n")


def guidance_of(model: Model, scale: float | None) -> str:
    """How to set `guidance_scale`. scale: at which an input for guidance was fixed, if it was."""
    if model.takes_guidance:
        return "It was trained with `guidance_scale` as an input, which costs no second evaluation."
    if scale is not None:
        return (
            f"It was trained with guidance as an input, which this pipeline does not pass: it is fixed at "
            f"{scale:g}. Leave `guidance_scale` at 0."
        )
    return "Guidance is built in: leave `guidance_scale` at 0."


def measured(metrics: Metrics | None) -> list[str]:
    """The section with the metrics; empty if the model was not evaluated."""
    if metrics is None:
        return []
    lines = [
        "## Measured",
        "",
        f"On {metrics.pictures} images, with the features of `{metrics.features}`; intervals are 95 %. The "
        "kernel distance to real images is unbiased: a perfect model scatters around 0. The ratio is to the "
        f"teacher at its full step count. The Frechet distance, to {metrics.reference} real images, is "
        "biased upwards.",
        "",
        "| steps | NFE | kernel distance | ratio to the teacher | prompt accuracy | Frechet distance |",
        "|---|---|---|---|---|---|",
    ]
    for steps, result in metrics.steps.items():
        figures = (
            interval_text(result.kernel_distance),
            ratio_text(result.kernel_ratio),
            interval_text(result.prompt_accuracy),
            f"{result.frechet_distance:.3g}",
        )
        lines.append(f"| {steps} | {result.nfe} | {' | '.join(figures)} |")
    warnings = [
        f"- {counted(int(steps))}: {flag}" for steps, result in metrics.steps.items() for flag in result.flags
    ]
    return [*lines, "", *(["The evaluation warns:", "", *warnings, ""] if warnings else [])]


def counted(steps: int) -> str:
    """ "1 step", "4 steps"."""
    return f"{steps} step{'s' if steps != 1 else ''}"
