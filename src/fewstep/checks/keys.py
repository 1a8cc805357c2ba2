"""Checks that params.yaml has every key that DVC tracks by name: our reader has defaults, DVC has none."""

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from fewstep.chain import Chain
from fewstep.config.base import PARAMS, load_params

DVC = Path("dvc.yaml")
ITEM = re.compile(r"\$\{item\.(\w+)\}")
"""A key of an entry in dvc.yaml."""


def faults(chain: Chain) -> Iterator[str]:
    """One line per key that a stage of dvc.yaml names and its section of params.yaml lacks."""
    if not DVC.exists():
        return
    params = load_params()
    for stage in yaml.safe_load(DVC.read_text())["stages"].values():
        for key in stage.get("do", stage).get("params", ()):
            section, _, entry = key.partition(".")
            values = params.get(section)
            if entry and "${" not in key and isinstance(values, Mapping) and entry not in values:
                yield f"{PARAMS}: {key}: is missing; DVC needs it, add `{entry}:`, empty for its default"
        yield from of_entries(stage, params)


def of_entries(stage: Mapping[str, Any], params: Mapping[str, Any]) -> Iterator[str]:
    """Keys that a stage with an entry per model names as `${item.KEY}`."""
    section = str(stage.get("foreach", "")).removeprefix("${").removesuffix("}")
    entries = params.get(section)
    if isinstance(entries, Mapping):
        for name, values in entries.items():
            for key in sorted({*ITEM.findall(str(stage["do"]))}):
                if isinstance(values, Mapping) and key not in values:
                    yield f"{PARAMS}: {section}.{name}.{key}: is missing; DVC needs it, also for its default"
