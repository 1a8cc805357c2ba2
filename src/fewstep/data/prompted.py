"""File format of latents with their prompts' conditions, for triplets and for encoded images.

`latents [n, C, h, w]`; `prompt [n]`, a row of the table `condition.<name> [prompts, ...]` in which each
distinct prompt is encoded once; and `own.<name> [n]`, conditions of a single latent.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from fewstep.core.files import whole_file
from fewstep.core.hardware import upload
from fewstep.diffusion.denoiser import Conditions

TABLE, OWN = "condition.", "own."
DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


@dataclass(frozen=True)
class Prompted:
    """One latent `[C, h, w]` and its conditions, without a batch dimension; float32."""

    latent: Tensor
    condition: dict[str, Tensor]


def save_prompted(
    path: Path,
    latents: Tensor,
    prompt: Tensor,
    table: Conditions,
    dtype: str,
    per_latent: Mapping[str, Tensor],
) -> None:
    """Write the file atomically; dtype: of everything but `prompt`, on disk."""
    named = {f"{TABLE}{name}": value for name, value in table.items()}
    named |= {f"{OWN}{name}": value for name, value in per_latent.items()} | {"latents": latents}
    small = {name: value.to("cpu", DTYPES[dtype]).contiguous() for name, value in named.items()}
    with whole_file(path) as staging:
        save_file({"prompt": prompt, **small}, staging)


def load_prompted(path: Path) -> list[Prompted]:
    """Every latent of a file; those with the same prompt share its tensors."""
    tensors = load_file(path)
    table, per_latent = (
        {
            name.removeprefix(prefix): value.float()
            for name, value in tensors.items()
            if name.startswith(prefix)
        }
        for prefix in (TABLE, OWN)
    )
    return [
        Prompted(
            latent,
            {name: value[prompt] for name, value in table.items()}
            | {name: value[row] for name, value in per_latent.items()},
        )
        for row, (latent, prompt) in enumerate(
            zip(tensors["latents"].float(), tensors["prompt"].tolist(), strict=True)
        )
    ]


def collate_rows(samples: Sequence[Prompted], device: torch.device) -> tuple[Tensor, Conditions]:
    """x_0 `[B, C, h, w]` and conditions `[B, ...]`, on the device."""
    conditions = {
        name: upload(torch.stack([sample.condition[name] for sample in samples]), device)
        for name in samples[0].condition
    }
    return upload(torch.stack([sample.latent for sample in samples]), device), conditions
