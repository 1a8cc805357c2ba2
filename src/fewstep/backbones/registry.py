"""Model families, found by the names of their files."""

import importlib
from pathlib import Path
from typing import Any

from fewstep.artifacts.manifest import Manifest
from fewstep.backbones.protocol import Backbone
from fewstep.core.errors import UserError


def open_backbone(teacher: Path) -> Backbone:
    """Load the adapter of a teacher artifact. Raises UserError when the artifact is incomplete."""
    metadata = Manifest.open(teacher, "teacher").facts
    backbone: Backbone = family(metadata["backbone"]).open(teacher)
    return backbone


def family(name: str) -> Any:
    """The class `Adapter` of `fewstep.backbones.<name>`; imported on demand."""
    files = sorted(Path(__file__).parent.glob("*.py"))
    known = [file.stem for file in files if "\nAdapter = " in file.read_text()]
    if name not in known:
        raise UserError(
            f"params.yaml: teacher.backbone = {name!r}: no such family; known: {', '.join(known)}"
        )
    return importlib.import_module(f"fewstep.backbones.{name}").Adapter
