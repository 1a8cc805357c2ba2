"""Initialises a student from its start model."""

from copy import deepcopy
from dataclasses import replace

from torch import nn

from fewstep.backbones.model import Model
from fewstep.backbones.protocol import Backbone
from fewstep.core.keyed import Key
from fewstep.students.config import MethodConfig
from fewstep.training.lora import attach, twin


def start_and_student(
    start: Model, name: str, backbone: Backbone, config: MethodConfig, seed: int
) -> tuple[Model, Model]:
    """The start model, unchanged, and the student before training, under the new name.

    The student equals its start, unless its method has a network of another architecture. Without `lora` it
    is a copy; with it both share one copy of the base weights.
    """
    inputs = inputs_of(start, config)
    if config.lora is None:
        net = config.network(start.net)
        for more in inputs[len(start.denoiser.inputs) :]:
            net = backbone.with_input(net, more)
        net = (deepcopy(net) if net is start.net else net).requires_grad_(True)
    else:
        net = twin(start.net)
        attach(net, config.lora, backbone.lora_targets, Key(seed, f"{name}/lora").seed32(0))
    student = with_net(start, net, backbone, inputs)
    return start, replace(student, name=name, sampling=config.sampling(start.sampling, inputs))


def inputs_of(start: Model, config: MethodConfig) -> tuple[str, ...]:
    """Inputs of the student's network beside its time: those of its start, then those that `config` adds."""
    taken = start.denoiser.inputs
    return (*taken, *(name for name in config.inputs if name not in taken))


def with_net(model: Model, net: nn.Module, backbone: Backbone, inputs: tuple[str, ...]) -> Model:
    """The model with its network replaced by `net`; inputs: see `Denoiser.inputs`."""
    denoiser = replace(model.denoiser, network=backbone.network(net, inputs), inputs=inputs)
    return replace(model, net=net, denoiser=denoiser)
