"""Size of saved training states before the networks exist, without networks beside the denoiser."""

from contextlib import suppress
from functools import cache

import torch

from fewstep.chain import Chain
from fewstep.checks.designs import designs, networks
from fewstep.checks.memory import FLOAT, Setup
from fewstep.checks.plan import trainings
from fewstep.checks.teacher import design
from fewstep.checks.tracing import Design, optimizers_for
from fewstep.core.errors import UserError
from fewstep.training.lora import LoraSettings, attach
from fewstep.training.muon import Muon

AT_ONCE = 2
"""States of a training on the disk while one is written: the new one and the one before it."""


def largest(chain: Chain) -> int:
    """Bytes of the chain's largest state; 0 while the teacher is unknown. Stages delete theirs at the end."""
    denoiser = design(chain)
    if denoiser is None:
        return 0
    nets, sizes = designs(chain, denoiser), [0]
    for name, setup in trainings(chain).items():
        net, _, teacher = networks(chain, nets, name)
        with suppress(UserError):  # impossible settings, which another check reports with their place
            sizes.append(saved(net, setup, teacher))
    return max(sizes)


def saved(net: Design, setup: Setup, teacher: Design) -> int:
    """Bytes of a state: trained weights, optimizer state and averages, also of the further networks.

    net, teacher: the trained network and the chain's teacher, whose size further networks have.
    """
    weights, moments = trained(net, setup.lora, setup.optimizer)
    size = weights * (1 + setup.ema + setup.ema_on_host + setup.averages) + moments
    return size + sum(sum(trained(teacher, setup.lora, optimizer)) for optimizer in setup.further)


@cache
def trained(design: Design, lora: LoraSettings | None, optimizer: str) -> tuple[int, int]:
    """Bytes of a network's trained weights, and of the optimizer's averages of their gradients."""
    with torch.device("meta"):
        net = design.make()
        if lora is not None:
            attach(net, lora, design.kind.lora_targets, 0)
    count = sum(weight.numel() for weight in net.parameters() if weight.requires_grad)
    optimizers = optimizers_for(net, optimizer)
    if not optimizers:
        return FLOAT * count, 2 * count
    moments = 0
    for each in optimizers:
        held = sum(weight.numel() for group in each.param_groups for weight in group["params"])
        moments += FLOAT * held * (1 if isinstance(each, Muon) else 2)
    return FLOAT * count, moments
