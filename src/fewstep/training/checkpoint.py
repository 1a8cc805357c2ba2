"""Training checkpoints that survive any kill: safetensors and JSON, written atomically, no pickle."""

import shutil
from collections.abc import Mapping
from pathlib import Path

from safetensors.torch import load_file, save_file
from torch import Tensor

from fewstep.core.files import read_json, whole_folder, write_json


def save_state(folder: Path, step: int, tensors: Mapping[str, Tensor]) -> None:
    """Save the state after `step` steps, tensors on the host, then delete older states.

    What a killed process left half-written is deleted first, so that at most two states are on disk.
    """
    for partial in folder.glob(".step-*.partial"):
        shutil.rmtree(partial)
    with whole_folder(folder / f"step-{step:08d}") as staging:
        save_file(
            {name: value.contiguous() for name, value in tensors.items()}, staging / "state.safetensors"
        )
        write_json(staging / "state.json", {"step": step})
    for old in states(folder)[:-1]:
        shutil.rmtree(old)


def load_state(folder: Path) -> tuple[int, dict[str, Tensor]] | None:
    """The newest complete state as (steps done, tensors on the host), or None."""
    saved = states(folder)
    if not saved:
        return None
    return read_json(saved[-1] / "state.json")["step"], load_file(saved[-1] / "state.safetensors")


def states(folder: Path) -> list[Path]:
    """Folders of complete states, oldest first."""
    return sorted(folder.glob("step-*"))
