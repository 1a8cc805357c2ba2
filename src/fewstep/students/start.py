"""Initialises a student from its start model."""

from collections.abc import Sequence
from copy import deepcopy
from dataclasses import replace

from torch import nn

from fewstep.backbones.low_rank import twin
from fewstep.backbones.model import Model
from fewstep.backbones.protocol import Backbone
from fewstep.core.errors import UserError
from fewstep.core.keyed import Key
from fewstep.students.config import MethodConfig
from fewstep.training.lora import LoraSettings, attach


def start_and_student(
    start: Model, name: str, backbone: Backbone, config: MethodConfig, seed: int
) -> tuple[Model, Model]:
    """The start model, unchanged, and the student before training, under the new name.

    The student equals its start, unless its method has a network of another architecture.
    """
    inputs = inputs_of(start, config)
    net = config.network(start.net) if config.lora is None else start.net
    more = inputs[len(start.denoiser.inputs) :]
    net = to_train(net, more, backbone, config.lora, Key(seed, f"{name}/lora").seed32(0))
    student = with_net(start, net, backbone, inputs)
    return start, replace(student, name=name, sampling=config.sampling(start.sampling, inputs))


def to_train(
    net: nn.Module, more: Sequence[str], backbone: Backbone, lora: LoraSettings | None, seed: int
) -> nn.Module:
    """A network with the weights of `net` and further inputs, to be trained.

    more: the inputs. Without `lora` it is a copy, of which all weights are trained. With it, both share one
    copy of the base weights; an adapter, drawn from `seed`, and the weights of the inputs are trained.
    Raises UserError where a custom model's network with the inputs has other names for its weights.
    """
    made = twin(net)
    for name in more:
        made = backbone.with_input(made, name)
    if lora is None:
        return deepcopy(made).requires_grad_(True)
    before, after = ({n: weight.shape for n, weight in each.named_parameters()} for each in (net, made))
    if before.keys() - after.keys():
        raise UserError(f"lora: `with_input` for {', '.join(more)} must name the network's weights as before")
    changed = [name for name, shape in after.items() if shape != before.get(name)]
    attach(made, lora, backbone.lora_targets, seed, whole=changed)
    return made


def inputs_of(start: Model, config: MethodConfig) -> tuple[str, ...]:
    """Inputs of the student's network beside its time: those of its start, then those that `config` adds."""
    taken = start.denoiser.inputs
    return (*taken, *(name for name in config.inputs if name not in taken))


def with_net(model: Model, net: nn.Module, backbone: Backbone, inputs: tuple[str, ...]) -> Model:
    """The model with its network replaced by `net`; inputs: see `Denoiser.inputs`."""
    denoiser = replace(model.denoiser, network=backbone.network(net, inputs), inputs=inputs)
    return replace(model, net=net, denoiser=denoiser)
