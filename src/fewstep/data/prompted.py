"""File format of latents with their prompts' conditions, for triplets and for encoded images.

`latents [n, C, h, w]`; `prompt [n]`, a row of the table `condition.<name> [prompts, ...]` in which each
distinct prompt is encoded once; and `own.<name> [n]`, conditions of a single latent.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from fewstep.core.errors import UserError
from fewstep.core.files import whole_file
from fewstep.core.hardware import upload
from fewstep.diffusion.denoiser import Conditions

TABLE, OWN = "condition.", "own."
DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


@dataclass(frozen=True)
class Prompted:
    """One latent `[C, h, w]` and its conditions, without a batch dimension; in the dtype of their file."""

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


class PromptedFile:
    """The latents of a file, which is mapped into memory. A row is read when it is used, in its stored dtype.

    The pages that were read belong to the system's file cache: it drops them when a process needs the memory.
    """

    def __init__(self, path: Path) -> None:
        """Raises UserError naming the file when it is damaged."""
        try:
            tensors = load_file(path)
        except SafetensorError as error:
            remedy = "delete the folder that it lies in and run `dvc repro`"
            raise UserError(f"{path}: damaged ({error}); {remedy}") from None
        self._latents, self._prompts = tensors["latents"], tensors["prompt"].tolist()
        self._table, self._own = (
            {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
            for prefix in (TABLE, OWN)
        )

    def __getitem__(self, row: int) -> Prompted:
        prompt = self._prompts[row]
        shared = {name: value[prompt] for name, value in self._table.items()}
        return Prompted(self._latents[row], shared | {name: value[row] for name, value in self._own.items()})


def collate_rows(samples: Sequence[Prompted], device: torch.device) -> tuple[Tensor, Conditions]:
    """x_0 `[B, C, h, w]` and conditions `[B, ...]`, float32, on the device.

    They are converted there: half as many bytes are copied where the file holds half precision.
    """

    def stacked(rows: Sequence[Tensor]) -> Tensor:
        # Under a bfloat16 autocast, torch.stack refuses float16. A thread that prepares batches cannot
        # disable autocast either: leaving it clears a cache that all threads share.
        batch = rows[0].new_empty(len(rows), *rows[0].shape)
        for i, row in enumerate(rows):
            batch[i] = row
        return upload(batch, device).float()

    names = samples[0].condition
    conditions = {name: stacked([sample.condition[name] for sample in samples]) for name in names}
    return stacked([sample.latent for sample in samples]), conditions
