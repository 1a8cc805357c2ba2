"""Checks that params.yaml has every key that DVC tracks by name: our reader has defaults, DVC has none."""

from collections.abc import Iterator, Mapping
from pathlib import Path

import yaml

from fewstep.chain import Chain
from fewstep.config.base import PARAMS, load_params

DVC = Path("dvc.yaml")


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
