"""Trains a student from a model of the chain: what the stages `reflow`, `halve` and `distill` share."""

import importlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from fewstep.artifacts.workspace import Workspace
from fewstep.backbones.low_rank import LowRank
from fewstep.backbones.model import Model, open_model, save_model
from fewstep.backbones.registry import open_backbone
from fewstep.config.sampling import NoiseRange
from fewstep.core.errors import UserError
from fewstep.core.paths import ENCODED, MODELS, TEACHER
from fewstep.core.processes import is_main_process
from fewstep.features.network import openers
from fewstep.students.config import MethodConfig
from fewstep.students.context import Context
from fewstep.students.method import StudentMethod
from fewstep.students.start import start_and_student
from fewstep.training.evaluations import read_curve
from fewstep.training.half import is_whole, restore_frozen
from fewstep.training.loop import train
from fewstep.training.lora import detach


@dataclass(frozen=True)
class Task:
    """One student to be trained.

    stage: its name in DVC. name: of the model. method: the file of `methods/`. shards: folders of the
    triplets to learn from. features: path of the feature network. negative_prompt, guidance_interval: of the
    teacher's guidance.
    """

    stage: str
    name: str
    method: str
    config: MethodConfig
    shards: Sequence[Path]
    seed: int
    features: Path | None = None
    negative_prompt: str = ""
    guidance_interval: NoiseRange | None = None

    @property
    def encoded(self) -> Path | None:
        """Folder of encoded real images, where the method learns from them."""
        return ENCODED / "train" if self.config.data == "encoded" else None

    @property
    def inputs(self) -> dict[str, Path]:
        """Name -> path of every artifact that the model is made from."""
        start = self.config.from_
        fixed = {start: MODELS / start, "teacher": TEACHER} | {f"triplets {p.name}": p for p in self.shards}
        optional = {"features": self.features, "encoded": self.encoded}
        return fixed | {what: path for what, path in optional.items() if path is not None}

    @property
    def params(self) -> dict[str, Any]:
        """Everything else that the model depends on, as plain values."""
        limited = {} if self.guidance_interval is None else {"guidance_interval": [*self.guidance_interval]}
        return limited | {
            "seed": self.seed,
            "name": self.name,
            "method": self.method,
            "config": self.config.model_dump(mode="json"),
            "negative_prompt": self.negative_prompt,
        }


def method_module(name: str) -> Any:
    """`fewstep.methods.<name>`, a file with:

    - `Config`, a `MethodConfig`;
    - `student_of(config, start)`, the student model before training, with its path and step count;
    - `METHOD`, the `StudentMethod` that trains it, called as `METHOD(config, context, student)`.

    Raises UserError on an unknown name.
    """
    whole = f"fewstep.methods.{name}"
    try:
        module = importlib.import_module(whole)
    except ModuleNotFoundError as error:
        if not whole.startswith(str(error.name)):
            raise  # an import within the method failed
        module = None
    if not all(hasattr(module, part) for part in ("Config", "student_of", "METHOD")):
        file = f"src/fewstep/methods/{name}.py"
        raise UserError(
            f"{name!r}: no such method; a method is a file {file} with Config, student_of and METHOD"
        )
    return module


def learn(task: Task) -> None:
    """Train the student and write it to `artifacts/models/<name>`."""
    config, name = task.config, task.name
    backbone = open_backbone(TEACHER)
    start, student = start_and_student(
        open_model(MODELS / config.from_, backbone), name, backbone, config, task.seed
    )
    context = Context(
        name=name,
        seed=task.seed,
        start=start,
        student=student,
        backbone=backbone,
        shards=task.shards,
        features=task.features,
        encoded=task.encoded,
        negative_prompt=task.negative_prompt,
        guidance_interval=task.guidance_interval,
    )
    module = method_module(task.method)
    made: Model = module.student_of(config, context.student)
    if task.features is not None:
        openers()  # imports the feature networks, whose code is part of the fingerprint
    work = Workspace(task.stage, task.params, task.inputs)
    method: StudentMethod = module.METHOD(config, context, made)
    train(method, name, task.seed, work.folder)
    made = method.student
    if is_main_process():
        adapter, base = separated(made.net, config, start.net)
        curve = read_curve(work.folder / name)
        save_model(
            MODELS / name,
            made,
            backbone,
            task.method,
            task.inputs,
            adapter=adapter,
            start=base,
            dtype=config.dtype,
            curve=curve,
            metadata=work.metadata,
        )
        work.finish()


def separated(net: nn.Module, config: MethodConfig, begun: nn.Module) -> tuple[LowRank | None, Path | None]:
    """Merge the adapter into the trained network, in place, and return it; None if all weights were trained.

    begun: the start model's network after the training. Frozen weights that were rounded become those of the
    start model's artifact again. The second value is this artifact, if it has all weights of the network that
    are not in the adapter.
    """
    if config.lora is None and config.trains_denoiser:
        return None, None
    start = MODELS / config.from_
    intact = all(is_whole(weight) for weight in begun.parameters())
    before = begun if intact else open_model(start, open_backbone(TEACHER)).net
    restore_frozen(net, before)
    if config.lora is None:
        return None, None
    adapter = detach(net)
    return adapter, start if adapter.is_the_only_change(net, before) else None
