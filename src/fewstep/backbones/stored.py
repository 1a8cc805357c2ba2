"""Stores and opens the denoising network of a model: whole, or as adapters of its teacher.

A model that was trained as a low-rank adapter of the teacher is stored as that adapter, in `lora/`. If it was
trained on another such model, that one's adapters are in `lora/before/`, numbered in the order of merging.
The manifest lists them all. Every other network is stored whole, in `net/`.
"""

import shutil
from copy import deepcopy
from pathlib import Path
from typing import Any

import torch
from torch import nn

from fewstep.artifacts.manifest import NAME, Manifest, identity
from fewstep.backbones.low_rank import FILE, LowRank, merge
from fewstep.backbones.protocol import Backbone
from fewstep.core.errors import UserError
from fewstep.core.files import read_json
from fewstep.core.paths import TEACHER

NET, LORA, BEFORE = "net", "lora", "lora/before"
ADAPTERS = "adapters"
"""Key of a manifest: folders of the adapters, in the order of merging; none where `net/` is the network."""


def save_denoiser(
    folder: Path,
    net: nn.Module,
    backbone: Backbone,
    adapter: LowRank | None,
    start: Path | None,
    dtype: torch.dtype = torch.float32,
) -> dict[str, Any]:
    """Write the network into a model's folder; returns the entries of its manifest.

    adapter: the low-rank adapter, if only that was trained, which is already merged into `net`. start: the
    artifact of the model that it was trained on, if all other weights are those of that model; None: the
    network is stored whole, beside its adapter. dtype: of a network that is stored whole, on disk.
    """
    entries: dict[str, Any] = {}
    before = None if adapter is None or start is None else adapters_of(start)
    if before is None:
        backbone.save_net(net if dtype == torch.float32 else deepcopy(net).to(dtype), folder / NET)
    else:
        names = [f"{BEFORE}/{number}" for number in range(1, 1 + len(before))]
        for source, name in zip(before, names, strict=True):
            (folder / name).mkdir(parents=True)
            shutil.copyfile(source / FILE, folder / name / FILE)
        entries[ADAPTERS] = [*names, LORA]
    if adapter is not None:
        adapter.save(folder / LORA, backbone.net_part)
        entries["lora"] = adapter.metadata
    return entries


def open_denoiser(folder: Path, manifest: Manifest, backbone: Backbone) -> nn.Module:
    """The network in a model's folder. Raises UserError where it needs another teacher than the one there."""
    if ADAPTERS not in manifest.facts:
        return backbone.load_net(folder / NET)
    teacher = folder.parent / TEACHER.name
    there = (teacher / NAME).is_file()
    if not there or identity(teacher) != manifest.made_from[TEACHER.name]:
        problem = f"another teacher than that of {folder}" if there else "no such file"
        raise UserError(
            f"{teacher / NAME}: {problem}; {folder} is stored as adapters of its teacher: `dvc checkout` "
            "brings that teacher back, `dvc repro` makes the model from the present one"
        )
    net = backbone.base_net(teacher)
    for name in manifest.facts["inputs"]:
        net = backbone.with_input(net, name)
    adapters = [LowRank.open(folder / name, backbone.net_part) for name in manifest.facts[ADAPTERS]]
    try:
        merge(net, adapters)
    except (TypeError, ValueError) as error:
        raise UserError(f"{folder / LORA}: does not fit the network of {teacher}: {error}") from error
    return net


def adapters_of(folder: Path) -> list[Path] | None:
    """Folders of a model's adapters since the teacher, in the order of merging; None: it is stored whole.

    The teacher has none, `[]`.
    """
    manifest = read_json(folder / NAME)
    if manifest.get("kind") == "teacher":
        return []
    names = manifest["facts"].get(ADAPTERS)
    return None if names is None else [folder / name for name in names]
