"""`manifest.json`: what a folder holds and what it was made from; verified when it is opened."""

import hashlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Self

from fewstep.core.errors import UserError
from fewstep.core.files import read_json, write_json

NAME = "manifest.json"


@dataclass(frozen=True)
class Manifest:
    """Deterministic description of an artifact.

    kind: what it is ("teacher", "model", "judge", "triplets", ...).
    facts: what a reader needs to use it (schedule, prediction, steps, parameter count ...).
    made_from: name of each input -> its identity.
    files: relative path -> SHA-256 of every other file of the folder.
    """

    kind: str
    facts: Mapping[str, Any]
    made_from: Mapping[str, str] = field(default_factory=dict)
    files: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def seal(
        cls, folder: Path, kind: str, metadata: Mapping[str, Any], made_from: Mapping[str, Path]
    ) -> Self:
        """Hash the files of `folder` and write its manifest. `made_from`: name -> input folder or file."""
        manifest = cls(
            kind=kind,
            facts=metadata,
            made_from={name: identity(path) for name, path in made_from.items()},
            files={str(file.relative_to(folder)): sha256(file) for file in contents(folder)},
        )
        write_json(folder / NAME, asdict(manifest))
        return manifest

    @classmethod
    def open(cls, folder: Path, kind: str) -> Self:
        """Read and verify. Raises UserError naming what is missing, changed, extra or of another kind."""
        values = read_json(folder / NAME)
        try:
            manifest = cls(**values)
        except TypeError:
            raise UserError(
                f"{folder / NAME}: not a manifest of this version; rebuild it with `dvc repro`"
            ) from None
        if manifest.kind != kind:
            raise UserError(f"{folder}: is a {manifest.kind!r} artifact, a {kind!r} is needed here")
        files = {str(file.relative_to(folder)): file for file in contents(folder)}
        for name in sorted(manifest.files.keys() | files.keys()):
            if name not in files:
                problem = "is missing"
            elif name not in manifest.files:
                problem = "is not in the manifest"
            elif sha256(files[name]) != manifest.files[name]:
                problem = "differs from the manifest's hash"
            else:
                continue
            raise UserError(
                f"{folder / name}: {problem}; the artifact is refused, rebuild it with `dvc repro`"
            )
        return manifest


def identity(path: Path) -> str:
    """The SHA-256 that identifies an input.

    A file: its content. An artifact: its manifest. A data set: its index. Any other folder (of a foreign
    network): the names and contents of its files. Raises UserError when nothing is there.
    """
    if path.is_file():
        return sha256(path)
    for described in (path / "index.json", path / NAME):
        if described.exists():
            return sha256(described)
    files = contents(path)
    if not files:
        return sha256(path / NAME)
    digest = hashlib.sha256()
    for file in files:
        digest.update(f"{file.relative_to(path).as_posix()}\0{sha256(file)}\n".encode())
    return digest.hexdigest()


def contents(folder: Path) -> list[Path]:
    """Every file below `folder` except its own manifest, in a fixed order."""
    return [file for file in sorted(folder.rglob("*")) if file.is_file() and file != folder / NAME]


def sha256(file: Path) -> str:
    """Hex SHA-256 of a file's content. Raises UserError when it is not there."""
    try:
        with file.open("rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()
    except FileNotFoundError:
        raise UserError(f"{file}: no such file; `dvc repro` makes it") from None
