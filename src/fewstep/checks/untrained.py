"""A stand-in for the chain's teacher before it exists: its networks with random weights."""

from collections.abc import Callable, Sequence
from typing import Any, cast

import torch
from accelerate import init_empty_weights
from torch import nn

from fewstep.backbones.pipeline import schedule_of
from fewstep.backbones.protocol import Backbone
from fewstep.backbones.sd_new import new_stable_diffusion
from fewstep.chain import Chain
from fewstep.checks.memory import FLOAT, Design
from fewstep.checks.teacher import known_teacher
from fewstep.checks.tracing import Kind, trace
from fewstep.core.hardware import device
from fewstep.diffusion.denoiser import Conditions

SCALE = 0.02
"""Standard deviation of a foreign network's random weights."""


def untrained(chain: Chain, denoiser: Design | None, captions: Sequence[str], memory: int) -> Backbone | None:
    """The backbone adapter with untrained networks; captions: for the tokenizer, if the chain builds one.

    None where a foreign teacher's configuration is missing, or where it does not fit into `memory` bytes.
    """
    if chain.teacher.train and chain.train_teacher is not None:
        return new_stable_diffusion(chain.train_teacher, chain.data.resolution, captions, chain.seed)
    return foreign(chain, denoiser, memory)


def foreign(chain: Chain, denoiser: Design | None, memory: int) -> Backbone | None:
    """A teacher as its configuration files describe it, without text encoders.

    Prompts become zeros of the right shape. None: see `untrained`.
    """
    known = known_teacher(chain)
    if denoiser is None or not known.scheduler:
        return None
    traced = trace(denoiser, Kind("adamw"))
    if traced.operations is None or FLOAT * traced.parameters > memory:
        return None
    kind: Any = denoiser.kind
    length = denoiser.length

    class Untrained(kind):  # type: ignore[misc]
        """The family's adapter without text encoders."""

        def encode_prompts(self, prompts: Sequence[str]) -> Conditions:
            conditions = self.example_conditions(self.net, len(prompts), length)
            return {name: value.to(device()) for name, value in conditions.items()}

        def unconditional(self, negative_prompt: str = "") -> Conditions:
            return self.encode_prompts([negative_prompt])

    def vae() -> nn.Module:
        import diffusers

        return filled(lambda: getattr(diffusers, kind.vae_class).from_config(known.vae))

    def scheduler() -> Any:
        import diffusers

        return getattr(diffusers, known.scheduler["_class_name"]).from_config(known.scheduler)

    parts = {kind.net_part: lambda: filled(denoiser.make), "vae": vae, "scheduler": scheduler}
    return cast(Backbone, Untrained(parts, *schedule_of(known.scheduler)))


@torch.no_grad()
def filled(make: Callable[[], nn.Module]) -> nn.Module:
    """A network on the device with random weights; the usual initialization of a large one takes minutes."""
    with init_empty_weights(include_buffers=False):
        net = make()
    for module in net.modules():
        for name, weight in list(module.named_parameters(recurse=False)):
            value = torch.empty(weight.shape, dtype=weight.dtype, device=device())
            value = value.normal_(0, SCALE) if weight.ndim > 1 else value.fill_(float(name == "weight"))
            module.register_parameter(name, nn.Parameter(value))
    return net.to(device())
