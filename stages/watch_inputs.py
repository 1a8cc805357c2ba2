"""watch_inputs: what lies outside the project, looked at each time, so that DVC sees when it changes."""

import json
from dataclasses import asdict
from importlib import import_module
from pathlib import Path

from fewstep.config.base import read
from fewstep.config.data import DataConfig
from fewstep.config.teacher import ImportTeacherConfig, TeacherConfig
from fewstep.core.files import write_json
from fewstep.core.paths import CHECKPOINTS, INPUTS
from fewstep.core.stage import run
from fewstep.core.switches import switch
from fewstep.sources.watched import look

KNOWN = CHECKPOINTS / "watch_inputs"
"""Hashes between two looks; each clone has its own."""


def main() -> None:
    """params.yaml `data.path`, `teacher.load` + what is there -> artifacts/inputs, one hash for each.

    On a cluster's workers FEWSTEP_INPUTS holds what the first host saw, and only that counts.
    """
    seen = json.loads(switch("INPUTS", "null")) or {
        name: asdict(look(places, KNOWN / f"{name}.sqlite")) for name, places in inputs().items()
    }
    for name, record in seen.items():
        write_json(INPUTS / f"{name}.json", record)


def inputs() -> dict[str, list[Path]]:
    """What params.yaml names outside the project, by the stage that reads it."""
    data, teacher = read(DataConfig, "data"), read(TeacherConfig, "teacher")
    source = import_module(f"fewstep.sources.{data.source}")
    named = [*teacher.load]
    if teacher.load and (config := read(ImportTeacherConfig, "import_teacher").config):
        named.append(config)
    # A hub id is no file: its revision tells what it is.
    return {"data": source.inputs(data), "teacher": [Path(where) for where in named if Path(where).exists()]}


if __name__ == "__main__":
    run(main, writes=INPUTS)
