"""A model of the chain, and its artifact."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from fewstep.artifacts.manifest import NAME, Manifest
from fewstep.backbones.architecture import open_network, save_network
from fewstep.backbones.low_rank import LowRank
from fewstep.backbones.protocol import Backbone
from fewstep.backbones.stored import open_denoiser, save_denoiser
from fewstep.core.files import read_json, whole_folder, write_json
from fewstep.diffusion.denoiser import Denoiser, Prediction
from fewstep.diffusion.sampling import TEACHERS, Guidance, Sampling
from fewstep.diffusion.schedules import schedule_from_metadata, schedule_metadata


def teacher_metadata(name: str, backbone: Backbone) -> dict[str, Any]:
    """Metadata of a teacher for its manifest; name: its model family."""
    return {
        "backbone": name,
        "schedule": schedule_metadata(backbone.schedule),
        "prediction": str(backbone.prediction),
        "parameters": sum(p.numel() for p in backbone.net.parameters()),
        "sampling": TEACHERS.metadata,
    }


@dataclass(frozen=True)
class Model:
    """A denoising network of the chain, ready to be evaluated.

    name: name of its folder. net: the network. denoiser: the network evaluated on the path of its samples.
    steps: the step count it was made for; None for any. sampling: how images are sampled with it. parts:
    further networks by name, each with its own architecture; `decoder` replaces the teacher's decoder.
    """

    name: str
    net: nn.Module
    denoiser: Denoiser
    steps: int | None
    sampling: Sampling
    parts: Mapping[str, nn.Module] = field(default_factory=dict)

    @property
    def takes_guidance(self) -> bool:
        """Whether its network has guidance as an input."""
        return self.sampling.guidance is Guidance.CONDITION

    @property
    def parameters(self) -> int:
        """Number of parameters of the denoising network."""
        return sum(p.numel() for p in self.net.parameters())

    @property
    def has_flow(self) -> bool:
        """Whether its network defines a velocity between noise and data, which straightness needs.

        A model made for one step was trained at t = 1 only; its output at other times is meaningless. A
        model made for N steps was trained at the N times of `trailing(N)` before 0.
        """
        return self.steps != 1


def open_model(folder: Path, backbone: Backbone) -> Model:
    """Any model of the chain, the teacher too.

    Raises UserError when the artifact is incomplete, or when it is stored as adapters of another teacher than
    the one beside it.
    """
    kind = read_json(folder / NAME).get("kind")
    if kind == "teacher":
        sampling = Sampling.from_metadata(Manifest.open(folder, "teacher").facts["sampling"])
        denoiser = Denoiser(
            backbone.network(backbone.net), backbone.schedule, backbone.prediction, backbone.schedule
        )
        return Model(folder.name, backbone.net, denoiser, None, sampling)
    manifest = Manifest.open(folder, "model")
    metadata, net = manifest.facts, open_denoiser(folder, manifest, backbone)
    denoiser = Denoiser(
        backbone.network(net, metadata["inputs"]),
        schedule_from_metadata(metadata["schedule"]),
        Prediction(metadata["prediction"]),
        schedule_from_metadata(metadata["path"]),
        tuple(metadata["inputs"]),
    )
    parts = {name: open_network(folder / name) for name in metadata["parts"]}
    return Model(
        folder.name, net, denoiser, metadata["steps"], Sampling.from_metadata(metadata["sampling"]), parts
    )


def save_model(
    folder: Path,
    model: Model,
    backbone: Backbone,
    method: str,
    inputs: Mapping[str, Path],
    adapter: LowRank | None = None,
    start: Path | None = None,
    dtype: str = "float32",
    curve: Sequence[Mapping[str, Any]] = (),
    metadata: Mapping[str, Any] | None = None,
) -> None:
    """Write a model of the chain as an artifact: its network, its parts and a manifest.

    method: the file of `methods/` that made it. inputs: name -> folder of every input artifact. adapter: the
    low-rank adapter, if only that was trained, which is already merged into the network. start: the artifact
    of the model that it was trained on, if all other weights are those of that model; see `save_denoiser`.
    dtype: of a network that is stored whole, on disk; it is opened as float32. curve: measurements during
    training. metadata: further entries of the manifest.
    """
    with whole_folder(folder) as staging:
        stored = save_denoiser(staging, model.net, backbone, adapter, start, getattr(torch, dtype))
        for name, part in model.parts.items():
            save_network(part, staging / name)
        entries = {
            "method": method,
            "schedule": schedule_metadata(model.denoiser.schedule),
            "prediction": str(model.denoiser.prediction),
            "path": schedule_metadata(model.denoiser.path),
            "inputs": list(model.denoiser.inputs),
            "steps": model.steps,
            "sampling": model.sampling.metadata,
            "parameters": model.parameters,
            "parts": sorted(model.parts),
        } | stored
        if curve:
            write_json(staging / "evaluations.json", {"curve": list(curve)})
        Manifest.seal(staging, "model", entries | dict(metadata or {}), inputs)
