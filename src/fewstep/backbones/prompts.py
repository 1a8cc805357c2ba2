"""Prompts as conditions, each distinct one encoded once."""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from fewstep.backbones.base import Backbone
from fewstep.config.base import switch
from fewstep.diffusion.denoiser import Conditions
from fewstep.hardware import computing


def prompt_batch() -> int:
    """Pictures drawn at once: a matter of memory, not of results."""
    return int(switch("BATCH", "256"))


@torch.no_grad()
def encode_distinct(backbone: Backbone, prompts: Sequence[str]) -> tuple[Conditions, Tensor]:
    """Each distinct prompt encoded once: conditions `[P, ...]` and, per prompt, its row `[len(prompts)]`.

    Says how many are cut because the text encoder reads no further.
    """
    distinct = sorted(set(prompts))
    if cut := backbone.too_long(distinct):
        print(f"{cut} of {len(distinct)} distinct prompts are longer than the text encoder reads", flush=True)
    row = {prompt: i for i, prompt in enumerate(distinct)}
    parts = []
    with computing():
        for chunk in chunks(distinct):
            parts.append(backbone.encode_prompts(chunk))
    conditions = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
    return conditions, torch.tensor([row[prompt] for prompt in prompts])


def chunks(items: Sequence[str]) -> Iterator[Sequence[str]]:
    """Slices of at most `prompt_batch()`."""
    size = prompt_batch()
    return (items[i : i + size] for i in range(0, len(items), size))
