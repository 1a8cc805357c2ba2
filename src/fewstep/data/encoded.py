"""Real images and their captions, encoded: what methods that need real data train on."""

from functools import partial
from pathlib import Path

from fewstep.artifacts.manifest import Manifest
from fewstep.core.keyed import Key
from fewstep.data.prompted import Prompted, PromptedFile
from fewstep.data.stream import Stream


def open_encoded(folder: Path, order: Key) -> Stream[Prompted]:
    """Encoded images in keyed order. Raises UserError when the artifact is incomplete."""
    metadata = Manifest.open(folder, "encoded").facts
    return Stream(metadata["counts"], partial(_load, folder, metadata["files"]), order)


def _load(folder: Path, files: list[str], shard: int) -> PromptedFile:
    return PromptedFile(folder / files[shard])
