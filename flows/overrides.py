"""Parameters of a flow run that replace values of params.yaml, validated before they are written."""

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dvc.utils.serialize import dump_yaml, load_yaml, modify_yaml  # type: ignore[import-untyped]

from fewstep.config.base import PARAMS
from fewstep.core.errors import UserError

if TYPE_CHECKING:
    from fewstep.chain import Chain


def override(root: Path, overrides: Mapping[str, Any]) -> "Chain":
    """Write `{"students.one_step.training.steps": 400, ...}` into params.yaml and keep its comments.

    Returns the resulting chain. Raises as `tried` does, and then leaves params.yaml unchanged.
    """
    path = root / PARAMS
    chain = tried(path, overrides)
    if overrides:
        with modify_yaml(str(path)) as kept:
            for key, value in overrides.items():
                put(kept, key, value)
    return chain


def tried(path: Path, overrides: Mapping[str, Any]) -> "Chain":
    """The chain with the overrides; params.yaml stays unchanged.

    Raises UserError on an unknown key, and on values that are invalid or contradict each other.
    """
    # Imported here because it loads torch, which a worker's flow has no use for.
    from fewstep.chain import load_chain

    values = load_yaml(str(path))
    for key, value in overrides.items():
        put(values, key, value)
    with tempfile.TemporaryDirectory() as folder:
        written = Path(folder) / PARAMS
        dump_yaml(str(written), values)
        try:
            return load_chain(written)
        except UserError as error:
            raise UserError(str(error).replace(str(written), str(PARAMS))) from None


def put(values: Any, key: str, value: Any) -> None:
    """Set the value of an existing dotted key.

    Raises UserError where the key does not exist, naming those that do, and where a YAML anchor shares the
    value with other keys.
    """
    place, where = values, ""
    for part in key.split("."):
        if not isinstance(place, Mapping) or part not in place:
            known = ", ".join(map(str, place)) if isinstance(place, Mapping) else "no keys"
            inside = f" in {where}" if where else ""
            raise UserError(f"overrides: {key!r}: no such parameter; there are {known}{inside}")
        if others := [other for other in places(values, place) if other != where]:
            raise UserError(
                f"overrides: {key!r}: an anchor makes it part of {', '.join(others)} too; write it out there"
            )
        holder, place, where = place, place[part], f"{where}.{part}".lstrip(".")
    holder[part] = value  # type: ignore[index]


def places(values: Any, wanted: Any, where: str = "") -> list[str]:
    """Dotted keys at which the mapping `wanted` occurs; several where a YAML anchor repeats it."""
    keys = [where] if values is wanted else []
    for key, value in values.items() if isinstance(values, Mapping) else ():
        keys += places(value, wanted, f"{where}.{key}".lstrip("."))
    return keys
