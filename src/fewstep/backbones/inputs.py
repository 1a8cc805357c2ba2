"""Numbers that a U-Net of diffusers takes beside its time: guidance, and the end time of a step.

Each is embedded and projected onto the time embedding (`timestep_cond`), as latent consistency models take
guidance (Luo et al. 2023, section 4.2).
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from fewstep.backbones.low_rank import twin
from fewstep.core.errors import UserError
from fewstep.core.hardware import to_device
from fewstep.diffusion.denoiser import GUIDANCE, Conditions

INPUTS_WIDTH, INPUT_WIDTH = "time_cond_proj_dim", 256
"""Config key of the total width of embedded inputs; width per input, as in latent consistency models."""
PROJECTION = "time_embedding.cond_proj.weight"


def widened(net: nn.Module, name: str) -> nn.Module:
    """The network with one more input, on which its output does not depend yet; it shares all other weights.

    name: of the input, for the error. Raises UserError where the class has no place for one.
    """
    wider: Any = twin(net)
    if INPUTS_WIDTH not in wider.config:
        raise UserError(f"{name}: a {type(net).__name__} has no place for it; sd's and sdxl's networks have")
    taken = wider.config[INPUTS_WIDTH] or 0
    embedding = wider.time_embedding
    projection = nn.Linear(taken + INPUT_WIDTH, embedding.linear_1.in_features, bias=False)
    nn.init.zeros_(projection.weight)
    if taken:
        projection.weight.detach()[:, :taken] = embedding.cond_proj.weight
    embedding.cond_proj = projection.to(embedding.linear_1.weight)
    wider.register_to_config(**{INPUTS_WIDTH: taken + INPUT_WIDTH})
    return wider


@torch.no_grad()
def fixed(net: nn.Module, inputs: Sequence[str], name: str, value: Tensor) -> nn.Module:
    """The network without the input `name`, which always has the value `[1]`.

    inputs: all inputs of the network in their order. The projected embedding is a constant then, and becomes
    part of the bias of the time embedding's first layer. The output stays the same.
    """
    weights = dict(net.state_dict())
    start = INPUT_WIDTH * list(inputs).index(name)
    own = slice(start, start + INPUT_WIDTH)
    projection = weights.pop(PROJECTION)
    constant = projection[:, own] @ embedded_number(name, value)[0].to(projection)
    bias = "time_embedding.linear_1.bias"
    weights[bias] = weights[bias] + weights["time_embedding.linear_1.weight"] @ constant
    others = torch.cat([projection[:, : own.start], projection[:, own.stop :]], 1)
    if others.shape[1]:
        weights[PROJECTION] = others
    kind: Any = type(net)
    narrower = kind.from_config(net.config, **{INPUTS_WIDTH: others.shape[1] or None})
    narrower.load_state_dict(weights)
    return to_device(narrower).eval()


def embedded(inputs: Sequence[str], conditions: Conditions) -> Tensor | None:
    """The conditions of these names as the network's `timestep_cond` `[B, W]`; None where it takes none.

    Sinusoidal embeddings: of guidance minus 1, as in stock pipelines; of a time, as in the networks.
    """
    if not inputs:
        return None
    return torch.cat([embedded_number(name, conditions[name]) for name in inputs], 1)


def embedded_number(name: str, value: Tensor) -> Tensor:
    """Sinusoidal embedding `[B, INPUT_WIDTH]` of a condition `[B]`."""
    # Imported only here: every process that reads the chain's parameters imports this module.
    from diffusers.models.embeddings import get_timestep_embedding

    if name == GUIDANCE:
        return get_timestep_embedding(1000 * (value - 1), INPUT_WIDTH, downscale_freq_shift=1)
    return get_timestep_embedding(value, INPUT_WIDTH, downscale_freq_shift=0)
