"""Reads a section of params.yaml into a frozen, typed record; errors name the wrong key."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, TypeVar

import yaml
from pydantic import AfterValidator, BaseModel, ConfigDict, TypeAdapter, ValidationError, ValidationInfo

from fewstep.core.errors import UserError

PARAMS = Path("params.yaml")
INPUTS = "inputs"
"""Section of params.yaml that names paths and URLs of this machine. Stages depend on their content only."""
CREDENTIALS = re.compile(r"(?<=://)[^/\s@'\"]+(?=@)")
"""`user:password` in a URL, before the host."""
LONGEST_VALUE = 200
"""Longest wrong value that a message shows, characters."""
T = TypeVar("T")


def place(value: str, info: ValidationInfo) -> str:
    """Resolve a parameter that names a place: a name in the section `inputs` is replaced by its value there.

    `~` becomes the home folder; a URL, a pipe and a hub id stay as they are. Raises ValueError where `~user`
    has no home folder.
    """
    inputs = info.context if isinstance(info.context, Mapping) else {}
    named = str(inputs.get(value, value))
    if not named.startswith("~"):
        return named
    try:
        return str(Path(named).expanduser())
    except RuntimeError:
        raise ValueError(f"{named}: no such user on this machine, so no home folder") from None


def project_path(value: Path) -> Path:
    """A path that is a dependency in dvc.yaml. Raises ValueError on `~`, which DVC does not expand."""
    if value.parts[:1] and value.parts[0].startswith("~"):
        raise ValueError("DVC reads this path as it stands; link or copy the file into the project")
    return value


Place = Annotated[str, AfterValidator(place)]
"""Type of a parameter that names a folder, file or URL of the user's, resolved by `place`."""
ProjectPath = Annotated[Path, AfterValidator(project_path)]
"""Type of a parameter that dvc.yaml lists as a dependency."""


class Section(BaseModel):
    """Base of every section: frozen, unknown keys refused, `nan` and `inf` refused."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=False, allow_inf_nan=False)


def load_params(path: Path = PARAMS) -> dict[str, Any]:
    """The whole of params.yaml as plain values.

    Raises UserError when the file is missing or is not a mapping.
    """
    try:
        values = yaml.safe_load(path.read_text())
    except FileNotFoundError:
        raise UserError(
            f"{path}: no such file; run from the project's root ({Path.cwd()} is not it)"
        ) from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: not readable as YAML: {error}") from None
    if not isinstance(values, dict):
        raise UserError(f"{path}: expected a mapping of sections, found {type(values).__name__}")
    return values


def read(kind: type[T], *keys: str, path: Path = PARAMS) -> T:
    """The value at `keys` of params.yaml, validated as `kind`.

    >>> read(ReflowConfig, "reflow")            # a section
    >>> read(HalveConfig, "halve", "4")         # an entry of a mapping of sections
    >>> read(int, "seed")

    Raises UserError naming the key's full path, its value and what is allowed.
    """
    params = load_params(path)
    value: Any = params
    for depth, key in enumerate(keys):
        if not isinstance(value, Mapping) or key not in value:
            known = ", ".join(map(str, value)) if isinstance(value, Mapping) else "nothing"
            raise UserError(f"{path}: {'.'.join(keys[: depth + 1])} is missing (found there: {known})")
        value = value[key]
    return validate(kind, value, ".".join(keys), path, params.get(INPUTS))


def validate(
    kind: type[T], value: Any, where: str, path: Path = PARAMS, inputs: Mapping[str, str] | None = None
) -> T:
    """`value` as `kind`; every wrong key is reported, each on its own line. Raises UserError.

    inputs: name -> place, see `Place`.
    """
    try:
        return TypeAdapter(kind).validate_python(value, context=inputs)
    except ValidationError as error:
        raise UserError("\n".join(f"{path}: {line}" for line in describe(error, where))) from None


def describe(error: ValidationError, where: str) -> list[str]:
    """One line per wrong key: its path, its value, what is allowed."""
    lines = []
    for problem in error.errors():
        place = ".".join([where, *(str(part) for part in problem["loc"])]).strip(".")
        value = CREDENTIALS.sub("...", repr(problem["input"]))
        # An error between keys has their whole section as its input, which is too long to be useful.
        shown = "" if problem["type"] == "missing" or len(value) > LONGEST_VALUE else f" = {value}"
        what = {"extra_forbidden": "no such parameter", "missing": "is missing"}.get(
            problem["type"], problem["msg"].removeprefix("Value error, ")
        )
        lines.append(f"{place}{shown}: {what}")
    return lines
