"""The student at the beginning of a training."""

from copy import deepcopy
from dataclasses import replace

from torch import nn

from fewstep.backbones.model import Model
from fewstep.backbones.protocol import Backbone
from fewstep.core.keyed import Key
from fewstep.diffusion.sampling import STUDENTS, Guidance
from fewstep.students.config import MethodConfig
from fewstep.training.lora import attach, twin


def start_and_student(
    start: Model, name: str, backbone: Backbone, config: MethodConfig, seed: int
) -> tuple[Model, Model]:
    """The start as it stays, and the student that begins as its equal, under the new name.

    A whole student is a copy; with `lora` both share one copy of the base weights.
    """
    takes_guidance = start.takes_guidance or config.guidance_embedding
    if config.lora is None:
        widened = takes_guidance and not start.takes_guidance
        net = backbone.with_guidance(start.net) if widened else deepcopy(start.net)
        net.requires_grad_(True)
    else:
        net = twin(start.net)
        attach(net, config.lora, backbone.lora_targets, Key(seed, f"{name}/lora").seed32(0))
    student = with_net(start, net, backbone)
    sampling = replace(STUDENTS, guidance=Guidance.CONDITION) if takes_guidance else STUDENTS
    return start, replace(student, name=name, sampling=sampling)


def with_net(model: Model, net: nn.Module, backbone: Backbone) -> Model:
    """The model with another network in its place."""
    return replace(model, net=net, denoiser=replace(model.denoiser, network=backbone.network(net)))
