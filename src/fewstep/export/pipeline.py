"""Writes a model of the chain as a diffusers pipeline folder."""

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import diffusers
import torch
from diffusers import DDIMPipeline
from safetensors.torch import save_file
from torch import Tensor

from fewstep.artifacts.manifest import Manifest, identity
from fewstep.backbones.inputs import fixed, takes_inputs
from fewstep.backbones.model import Model
from fewstep.backbones.parts import component_names, forget_origin
from fewstep.backbones.pipeline import DiffusersBackbone
from fewstep.backbones.protocol import Backbone
from fewstep.core.errors import UserError
from fewstep.core.files import whole_folder, write_json
from fewstep.diffusion.denoiser import END_TIME, GUIDANCE
from fewstep.diffusion.sampling import Guidance
from fewstep.evaluation.schema import Metrics
from fewstep.export.adapter import export_adapter
from fewstep.export.card import model_card
from fewstep.export.sampling import StockSampling, demand_stock_pipeline, stock_sampling
from fewstep.sampling.draw import DECODER


def export(
    out: Path,
    model: Model,
    folder: Path,
    teacher: Path,
    backbone: Backbone,
    metrics: Metrics | None = None,
    steps: int | None = None,
) -> None:
    """Write `out`: the teacher's parts with the model's network, a scheduler that samples as the chain does,
    the network alone as `model.safetensors`, its adapter in `lora/` if only that was trained and the
    family's stock pipeline loads one, `fewstep.json` (how to call it) and a model card.

    folder, teacher: artifacts of the model and of its teacher. steps: None for the model's own count.
    Raises UserError when the family has no diffusers pipeline, or diffusers has no scheduler for the model.
    """
    if not isinstance(backbone, DiffusersBackbone):
        raise UserError(f"export.{model.name}: a custom model has no diffusers pipeline to export to")
    steps = steps or model.steps
    if steps is None:
        raise UserError(
            f"export.{model.name}: runs at any number of steps; say how many in export.{model.name}.steps"
        )
    guidance = (metrics.guidance if metrics else None) or 1.0
    model = model if steps > 1 else without_end_time(model, backbone)
    fixes_guidance = model.takes_guidance and not takes_inputs(model.net)
    model = at_guidance(model, backbone, guidance) if fixes_guidance else model
    config = backbone.parts["scheduler"]().config
    sampling = stock_sampling(model.name, model.denoiser, model.sampling, steps, config)
    call = call_of(backbone, sampling)
    if model.takes_guidance:
        call["guidance_scale"] = guidance
    demand_stock_pipeline(model.name, backbone.pipeline_class, call, backbone.net.config)
    metadata = {"model": identity(folder), "steps": steps, "call": call}
    with whole_folder(out) as staging:
        write_pipeline(backbone, model, sampling, staging)
        # One key, because safetensors writes several in a different order each time.
        described = {"fewstep": json.dumps(metadata, sort_keys=True)}
        weights = {name: value.contiguous().cpu() for name, value in model.net.state_dict().items()}
        save_file(weights, staging / "model.safetensors", metadata=described)
        if hasattr(class_of(backbone), "load_lora_weights"):
            export_adapter(folder, staging / "lora")
        write_json(staging / "fewstep.json", metadata)
        built_in = guidance if fixes_guidance else None
        card = model_card(model, folder, teacher, class_of(backbone).__name__, call, metrics, built_in)
        card.save(staging / "README.md")
        Manifest.seal(staging, "export", {"steps": steps}, {model.name: folder, "teacher": teacher})


def without_end_time(model: Model, backbone: DiffusersBackbone) -> Model:
    """The model for one step, which ends at time 0: a flow map's network then needs no input for it."""
    denoiser = model.denoiser
    end = denoiser.schedule.network_time(denoiser.own_time(torch.zeros(1))).float()
    return without_input(model, backbone, END_TIME, end)


def at_guidance(model: Model, backbone: DiffusersBackbone, scale: float) -> Model:
    """The model with this guidance scale built in, for a pipeline that passes none to its network."""
    model = without_input(model, backbone, GUIDANCE, torch.tensor([scale]))
    return replace(model, sampling=replace(model.sampling, guidance=Guidance.BUILT_IN))


def without_input(model: Model, backbone: DiffusersBackbone, name: str, value: Tensor) -> Model:
    """The model, whose network's input `name`, if it has one, always has the value `[1]`."""
    inputs = model.denoiser.inputs
    if name not in inputs:
        return model
    net = fixed(model.net, inputs, name, value)
    rest = tuple(other for other in inputs if other != name)
    return replace(
        model, net=net, denoiser=replace(model.denoiser, network=backbone.network(net, rest), inputs=rest)
    )


def class_of(backbone: DiffusersBackbone) -> Any:
    """The stock pipeline; for DDPMPipeline, which adds noise, the deterministic DDIMPipeline."""
    kind = getattr(diffusers, backbone.pipeline_class)
    return DDIMPipeline if backbone.pipeline_class == "DDPMPipeline" else kind


def call_of(backbone: DiffusersBackbone, sampling: StockSampling) -> dict[str, Any]:
    """Every argument of the call except the prompt."""
    if class_of(backbone) is DDIMPipeline:
        return {**sampling.call, "eta": 0.0}
    return {**sampling.call, **backbone.stock_call}


def write_pipeline(backbone: DiffusersBackbone, model: Model, sampling: StockSampling, folder: Path) -> None:
    """Load the parts and save them with diffusers, without their source paths."""
    kind = class_of(backbone)
    parts = {name: make() for name, make in backbone.parts.items()}
    parts |= {backbone.net_part: model.net, "scheduler": sampling.scheduler}
    if DECODER in model.parts:
        parts["vae"] = model.parts[DECODER]
    known: Mapping[str, Any] = {name: parts.get(name) for name in component_names(kind)}
    kind(**known, **backbone.pipeline_options).save_pretrained(folder)
    forget_origin(folder)
