"""From one model of the chain to the next: what the stages `reflow`, `halve` and `distill` share."""

import importlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fewstep.backbones.base import open_backbone, open_model, save_model
from fewstep.errors import UserError
from fewstep.layout import MODELS, TEACHER, TRIPLETS
from fewstep.objectives.ingredients import Ingredients, ObjectiveConfig, start_and_student
from fewstep.objectives.lora import detach
from fewstep.processes import is_main_process
from fewstep.training.loop import train
from fewstep.workspace import Workspace


def objective_module(name: str) -> Any:
    """`fewstep.objectives.<name>`: its `Config` and `build`. Raises UserError on an unknown name."""
    whole = f"fewstep.objectives.{name}"
    try:
        module = importlib.import_module(whole)
    except ModuleNotFoundError as error:
        if not whole.startswith(str(error.name)):
            raise  # something that the method needs
        module = None
    if not (hasattr(module, "Config") and hasattr(module, "build")):
        file = f"src/fewstep/objectives/{name}.py"
        raise UserError(f"{name!r}: no such method; a method is a file {file} with Config and build")
    return module


def learn(
    stage: str,
    name: str,
    method: str,
    config: ObjectiveConfig,
    shards: Sequence[int],
    seed: int,
    features: Path | None = None,
    encoded: Path | None = None,
    negative_prompt: str = "",
) -> None:
    """Train the model `name` with `method` and write it to `artifacts/models/<name>`.

    stage: for the checkpoints' place. shards: the triplet shards to learn from. features, encoded,
    negative_prompt: see `Ingredients`.
    """
    start_folder, out = MODELS / config.from_, MODELS / name
    triplets = [TRIPLETS / str(shard) for shard in shards]
    inputs = {config.from_: start_folder, "teacher": TEACHER} | {f"triplets {p.name}": p for p in triplets}
    also = {"features": features, "encoded": encoded}
    inputs |= {what: path for what, path in also.items() if path is not None}
    params = {
        "seed": seed,
        "name": name,
        "method": method,
        "config": config.model_dump(mode="json"),
        "negative_prompt": negative_prompt,
    }
    backbone = open_backbone(TEACHER)
    start, student = start_and_student(open_model(start_folder, backbone), name, backbone, config, seed)
    given = Ingredients(name, seed, start, student, backbone, triplets, features, encoded, negative_prompt)
    objective = objective_module(method).build(config, given)
    work = Workspace(stage, params, inputs)
    train(objective.method, name, seed, work.folder)
    if is_main_process():
        adapter = detach(objective.model.net) if config.lora is not None else None
        save_model(out, objective.model, backbone, method, inputs, adapter, work.metadata)
        work.finish()
