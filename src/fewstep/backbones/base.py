"""What the chain asks of a model family, and how a trained model of any family is kept."""

import importlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from torch import Tensor, nn

from fewstep.artifacts.manifest import NAME, Manifest
from fewstep.core.errors import UserError
from fewstep.core.files import read_json, whole_folder
from fewstep.diffusion.denoiser import Conditions, Denoiser, Network, Prediction
from fewstep.diffusion.schedules import Schedule, schedule_facts, schedule_from_facts


class Backbone(Protocol):
    """A model family's adapter, opened on a teacher; its networks are on the device, in evaluation mode.

    Pictures are `[B, 3, H, W]` in [-1, 1]; latents have about unit variance.
    """

    schedule: Schedule
    """The schedule the teacher was made for."""
    prediction: Prediction
    """What the teacher's network predicts."""
    lora_targets: Sequence[str]
    """Ends of the names of the layers that this family's adapters usually are on."""

    @property
    def net_part(self) -> str:
        """Name of the denoising network in the family's pipeline, `unet` or `transformer`."""

    @property
    def latent_shape(self) -> tuple[int, ...]:
        """Shape of one latent, e.g. (4, 64, 64)."""

    @property
    def net(self) -> nn.Module:
        """The teacher's denoising network."""

    def times(self, steps: int) -> list[float]:
        """`steps + 1` times from 1 to 0 at which the teacher is sampled."""

    def encode_prompts(self, prompts: Sequence[str]) -> Conditions:
        """Prompts as conditioning tensors `[B, ...]`; empty for a model that takes none."""

    def too_long(self, prompts: Sequence[str]) -> int:
        """How many prompts have an end that the text encoder does not read."""

    def unconditional(self, negative_prompt: str = "") -> Conditions:
        """The other side of guidance, batch size 1: as the family's own pipeline has it."""

    def encode(self, pictures: Tensor) -> Tensor:
        """Pictures as latents."""

    def decode(self, latents: Tensor) -> Tensor:
        """Latents as pictures, about in [-1, 1], unclipped."""

    def network(self, net: nn.Module) -> Network:
        """How a denoising network of this family is called."""

    def with_guidance(self, net: nn.Module) -> nn.Module:
        """A copy that also takes the condition `guidance [B]`, and does not heed it yet.

        Raises UserError when networks of this family have no place for it.
        """

    def load_net(self, folder: Path) -> nn.Module:
        """A network saved by `save_net`; strict."""

    def save_net(self, net: nn.Module, folder: Path) -> None:
        """Write the network in diffusers' format."""

    def decoder(self) -> nn.Module:
        """What `decode` runs, for a loss that differentiates through it."""


class LowRankAdapter(Protocol):
    """A low-rank adapter; see training/lora.py."""

    @property
    def facts(self) -> dict[str, Any]:
        """What a manifest says of it: rank, alpha, targets, number of trained parameters."""

    def save(self, folder: Path, part: str) -> None:
        """Write it in diffusers' format; part: of the pipeline that it is for."""


def open_backbone(teacher: Path) -> Backbone:
    """The adapter of a teacher artifact, loaded. Raises UserError when the artifact is not whole."""
    facts = Manifest.open(teacher, "teacher").facts
    backbone: Backbone = family(facts["backbone"]).open(teacher)
    return backbone


def family(name: str) -> Any:
    """The class `Adapter` of `fewstep.backbones.<name>`; imported only when asked for."""
    try:
        return importlib.import_module(f"fewstep.backbones.{name}").Adapter
    except (ModuleNotFoundError, AttributeError):
        files = sorted(Path(__file__).parent.glob("*.py"))
        known = ", ".join(file.stem for file in files if "\nAdapter = " in file.read_text())
        raise UserError(f"params.yaml: teacher.backbone = {name!r}: no such family; known: {known}") from None


def teacher_facts(name: str, backbone: Backbone) -> dict[str, Any]:
    """What a teacher's manifest says of it; name: of its family."""
    return {
        "backbone": name,
        "schedule": schedule_facts(backbone.schedule),
        "prediction": str(backbone.prediction),
        "parameters": sum(p.numel() for p in backbone.net.parameters()),
    }


@dataclass(frozen=True)
class Model:
    """A denoising network of the chain, ready to be asked.

    name: its folder's. net: the network. denoiser: the network on the path its samples travel.
    steps: the step count it was made for; None for any. takes_guidance: as a condition.
    """

    name: str
    net: nn.Module
    denoiser: Denoiser
    steps: int | None
    is_teacher: bool
    takes_guidance: bool = False

    @property
    def parameters(self) -> int:
        """Number of parameters of the denoising network."""
        return sum(p.numel() for p in self.net.parameters())

    @property
    def has_flow(self) -> bool:
        """Whether it has a velocity between noise and data, as straightness needs.

        A model made for one step was trained at t = 1 alone; what its network says at other times means
        nothing. One made for N steps was trained at the N times `trailing(N)` before 0.
        """
        return self.steps != 1


def open_model(folder: Path, backbone: Backbone) -> Model:
    """Any model of the chain, the teacher too. Raises UserError when the artifact is not whole."""
    kind = read_json(folder / NAME).get("kind")
    if kind == "teacher":
        denoiser = Denoiser(
            backbone.network(backbone.net), backbone.schedule, backbone.prediction, backbone.schedule
        )
        return Model(folder.name, backbone.net, denoiser, None, True)
    facts = Manifest.open(folder, "model").facts
    net = backbone.load_net(folder / "net")
    denoiser = Denoiser(
        backbone.network(net),
        schedule_from_facts(facts["schedule"]),
        Prediction(facts["prediction"]),
        schedule_from_facts(facts["path"]),
    )
    return Model(folder.name, net, denoiser, facts["steps"], False, facts["takes_guidance"])


def save_model(
    folder: Path,
    model: Model,
    backbone: Backbone,
    method: str,
    inputs: Mapping[str, Path],
    adapter: LowRankAdapter | None = None,
    metadata: Mapping[str, Any] | None = None,
) -> None:
    """Write a model of the chain as an artifact: `net/` in diffusers' format and a manifest.

    method: the file of `methods/` that made it. inputs: name -> folder of every artifact that went in.
    adapter: what alone was trained, merged in the network already; written beside it, in `lora/`. metadata:
    more for the manifest.
    """
    with whole_folder(folder) as staging:
        backbone.save_net(model.net, staging / "net")
        facts = {
            "method": method,
            "schedule": schedule_facts(model.denoiser.schedule),
            "prediction": str(model.denoiser.prediction),
            "path": schedule_facts(model.denoiser.path),
            "steps": model.steps,
            "takes_guidance": model.takes_guidance,
            "parameters": model.parameters,
        }
        if adapter is not None:
            adapter.save(staging / "lora", backbone.net_part)
            facts["lora"] = adapter.facts
        Manifest.seal(staging, "model", facts | dict(metadata or {}), inputs)
