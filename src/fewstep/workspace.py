"""Where a stage keeps unfinished work, and when that work may be taken up again."""

import hashlib
import json
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fewstep.artifacts.manifest import identity, sha256
from fewstep.layout import CHECKPOINTS


def workspace(stage: str, params: Any, inputs: Mapping[str, Path]) -> Path:
    """The folder of a stage's unfinished work, `.checkpoints/<stage>/<fingerprint>`.

    The fingerprint covers the params, the inputs' manifests and the source of every module of ours that is
    loaded, so work is only ever resumed under what it was begun with. Work begun under another
    fingerprint is deleted.
    """
    facts = {
        "params": params,
        "inputs": {name: identity(path) for name, path in inputs.items()},
        "source": {
            name: sha256(Path(module.__file__))
            for name, module in sys.modules.items()
            if name.startswith("fewstep") and module.__file__
        },
    }
    fingerprint = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:16]
    folder = CHECKPOINTS / stage / fingerprint
    if folder.parent.exists():
        for other in folder.parent.iterdir():
            if other != folder:
                shutil.rmtree(other, ignore_errors=True)
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def finished(folder: Path) -> None:
    """Drop the unfinished work of a stage whose artifact is written, so that a forced run starts anew."""
    shutil.rmtree(folder, ignore_errors=True)
