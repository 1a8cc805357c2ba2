"""The parts of a diffusers pipeline folder: listed in its index, loaded by class name."""

import importlib
import json
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from fewstep.backbones.configurations import INDEX
from fewstep.core.errors import UserError
from fewstep.core.files import read_json

LIBRARIES = ("diffusers", "transformers")
LEFT_OUT = ("safety_checker", "feature_extractor", "image_encoder")
"""Parts of stock pipelines that are not needed to sample from a prompt."""
Parts = Mapping[str, Callable[[], Any]]
"""Name of a pipeline folder's part -> function that loads it."""


def component_names(kind: type) -> list[str]:
    """The required parts of a pipeline class."""
    expected, optional = kind._get_signature_keys(kind)  # type: ignore[attr-defined]
    return sorted(set(expected) - set(optional))


def class_in(folder: Path) -> str | None:
    """Class name of the pipeline in the folder; None if it holds no pipeline."""
    return read_json(folder / INDEX).get("_class_name") if (folder / INDEX).is_file() else None


def parts_of(folder: Path) -> dict[str, Callable[[], Any]]:
    """The parts that the folder's index lists. Raises UserError if one is not a library's class."""
    parts: dict[str, Callable[[], Any]] = {}
    for name, entry in read_json(folder / INDEX).items():
        if not isinstance(entry, list) or entry[0] is None or name in LEFT_OUT:
            continue
        library, kind = entry
        if library not in LIBRARIES:
            raise UserError(f"{folder / INDEX}: {name} is code of its own ({library}), which is not run")
        parts[name] = partial(load_part, library, kind, folder / name)
    return parts


def load_part(library: str, kind: str, folder: Path) -> Any:
    """Load a part by its class name; imports the library on demand. Weights are read as float32."""
    return load(getattr(importlib.import_module(library), kind), folder)


def load(kind: Any, folder: Path) -> Any:
    """`kind.from_pretrained`, from local files only. Raises UserError naming the folder."""
    weights = {"dtype": torch.float32, "use_safetensors": True} if issubclass(kind, nn.Module) else {}
    try:
        return kind.from_pretrained(folder, local_files_only=True, **weights)
    except (OSError, ValueError, KeyError) as error:
        raise UserError(f"{folder}: cannot be loaded as {kind.__name__}: {error}") from error


def forget_origin(folder: Path) -> None:
    """Remove the paths that diffusers writes into the JSON files of a pipeline or part.

    Hashed files must not contain paths.
    """
    for name in (INDEX, "config.json", "scheduler_config.json"):
        for path in (folder / name, *folder.glob(f"*/{name}")):
            if path.exists():
                config = json.loads(path.read_text())
                config.pop("_name_or_path", None)
                path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
