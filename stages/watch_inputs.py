"""watch_inputs: hash the inputs outside the project; runs every time, so that DVC sees changes."""

import json
from dataclasses import asdict
from importlib import import_module
from pathlib import Path
from typing import Any

from fewstep.config.base import Place, read
from fewstep.config.data import DataConfig
from fewstep.config.teacher import ImportTeacherConfig, TeacherConfig
from fewstep.core.files import write_json
from fewstep.core.paths import CHECKPOINTS, INPUTS
from fewstep.core.stage import run
from fewstep.core.switches import switch
from fewstep.sources.watched import look

KNOWN = CHECKPOINTS / "watch_inputs"
"""Cached hashes of the files, kept between runs; each clone has its own."""


def main() -> None:
    """params.yaml `data.path`, `teacher.load`, `decoder.*.load` + their content -> artifacts/inputs.

    One hash for each of the three.

    On a cluster's workers FEWSTEP_INPUTS holds the records of the first host, which are written instead.
    """
    seen = json.loads(switch("INPUTS", "null")) or {
        name: asdict(look(places, KNOWN / f"{name}.sqlite")) for name, places in inputs().items()
    }
    for name, record in seen.items():
        write_json(INPUTS / f"{name}.json", record)


def inputs() -> dict[str, list[Path]]:
    """`data`, `teacher`, `decoder` -> paths outside the project that params.yaml names for it."""
    data, teacher = read(DataConfig, "data"), read(TeacherConfig, "teacher")
    source = import_module(f"fewstep.sources.{data.source}")
    named = [*teacher.load]
    if teacher.load and (config := read(ImportTeacherConfig, "import_teacher").config):
        named.append(config)
    decoders = read(dict[str, dict[str, Any]], "decoder")
    loaded = [read(Place, "decoder", name, "load") for name, entry in decoders.items() if entry.get("load")]
    return {
        "data": source.inputs(data),
        # A hub id is not a file; its revision identifies it.
        "teacher": [Path(where) for where in named if Path(where).exists()],
        "decoder": [Path(folder) for folder in loaded],
    }


if __name__ == "__main__":
    run(main, writes=INPUTS)
