"""Parameter files of published methods for the known families: params/METHOD_FAMILY.yaml.

A file is chain.yaml followed by the method's template, with the family's values of families.yaml.
"""

from pathlib import Path
from string import Template
from tempfile import TemporaryDirectory
from typing import Any

import yaml
from dvc.utils.hydra import apply_overrides  # type: ignore[import-untyped]

HERE = Path(__file__).parent
PARAMS = HERE.parents[1] / "params"
FAMILIES: dict[str, dict[str, str]] = yaml.safe_load((HERE / "families.yaml").read_text())["families"]
"""Family -> values of the templates."""
ENCODED = "{train: {dtype: float16}}"
FEW = {
    "encoded": ENCODED,
    "count": "500              # for comparisons while it trains",
    "drawn": "500",
}
METHODS: dict[str, dict[str, Any]] = {
    "instaflow": {
        "what": "reflow, halving, one step (InstaFlow), as low-rank adapters",
        "encoded": "{}",
        "count": "32000            # InstaFlow had 3.2 million triplets",
        "drawn": "4000",
    },
    "flash": {"what": "Flash Diffusion, a low-rank adapter for 1 to 4 steps"} | FEW,
    "dmd2": {"what": "distribution matching (DMD2), a low-rank adapter"} | FEW,
}
"""Method -> what its file trains, and the data that it needs."""


def recipes() -> dict[str, str]:
    """File name -> text of every parameter file."""
    return {f"{method}_{family}.yaml": recipe(method, family) for method in METHODS for family in FAMILIES}


def recipe(method: str, family: str) -> str:
    """The text of one parameter file."""
    whole = "".join((HERE / f"{name}.yaml").read_text() for name in ("chain", method))
    values = FAMILIES[family] | METHODS[method] | {"method": method, "family": family}
    return as_dvc_writes(Template(whole).substitute(values))


def as_dvc_writes(text: str) -> str:
    """The text in the form of DVC's writer, so that `dvc exp run -S` changes one line."""
    with TemporaryDirectory() as folder:
        file = Path(folder, "params.yaml")
        file.write_text(text)
        apply_overrides(str(file), ["seed=0"])
        return file.read_text()
