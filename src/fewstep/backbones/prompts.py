"""Encodes prompts to conditions, each distinct prompt once."""

from collections.abc import Sequence

import torch
from torch import Tensor

from fewstep.backbones.protocol import Backbone
from fewstep.core.hardware import autocast, device, images_at_once, in_parts
from fewstep.diffusion.denoiser import Conditions


@torch.no_grad()
def encode_distinct(backbone: Backbone, prompts: Sequence[str]) -> tuple[Conditions, Tensor]:
    """Each distinct prompt encoded once: conditions `[P, ...]` and, per prompt, its row `[len(prompts)]`.

    Both are in host memory: many long prompts do not fit a GPU. Prints how many prompts the text encoder
    truncates.
    """
    distinct = sorted(set(prompts))
    if cut := backbone.too_long(distinct):
        print(f"{cut} of {len(distinct)} distinct prompts are longer than the text encoder reads", flush=True)
    row = {prompt: i for i, prompt in enumerate(distinct)}
    parts = []
    with autocast():
        for some in in_parts(distinct, images_at_once()):
            parts.append({name: value.cpu() for name, value in backbone.encode_prompts(some).items()})
    conditions = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
    return conditions, torch.tensor([row[prompt] for prompt in prompts])


def gather(conditions: Conditions, rows: Tensor) -> Conditions:
    """Rows `[B]` of `encode_distinct`'s table, on the device."""
    return {name: value[rows].to(device()) for name, value in conditions.items()}
