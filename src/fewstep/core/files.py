"""Atomic writes: a file or folder gets its final name only when it is complete."""

import errno
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from fewstep.core.errors import UserError

PARTIAL = ".partial"
"""Suffix of what is being written; a killed process leaves it behind."""


@contextmanager
def whole_folder(path: Path) -> Iterator[Path]:
    """Yields a staging folder beside `path`; on success it takes `path`'s place in one rename.

    An exception leaves `path` as it was. A full disk raises UserError. What is at `path` is replaced.
    """
    staging = path.with_name(f".{path.name}{PARTIAL}")
    shutil.rmtree(staging, ignore_errors=True)
    with friendly_disk_errors(path):
        staging.mkdir(parents=True)
        try:
            yield staging
            for file in sorted(staging.rglob("*")):
                sync(file)
            shutil.rmtree(path, ignore_errors=True)
            staging.replace(path)
            sync(path.parent)
        finally:
            shutil.rmtree(staging, ignore_errors=True)


@contextmanager
def whole_file(path: Path, writer: str = "") -> Iterator[Path]:
    """The same for one file: yields the path to write to.

    writer: distinguishes processes that may write the file at the same time.
    """
    staging = path.with_name(f".{path.name}{writer}{PARTIAL}")
    with friendly_disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            yield staging
            sync(staging)
            staging.replace(path)
            sync(path.parent)
        finally:
            staging.unlink(missing_ok=True)


def link_or_copy(source: Path, target: Path) -> None:
    """Make `target` the same file as `source`.

    It is a copy where the file system has no links, or where they are on two file systems.
    """
    try:
        os.link(source, target)
    except OSError as error:
        if error.errno not in (errno.EXDEV, errno.EPERM, errno.ENOTSUP, errno.EMLINK):
            raise
        shutil.copyfile(source, target)


def sync(path: Path) -> None:
    """Flush a file or folder to the disk, so that a later rename is not stored before its content."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def friendly_disk_errors(path: Path) -> Iterator[None]:
    """Turn "no space left" into a UserError with the path and what to do."""
    try:
        yield
    except (OSError, SafetensorError) as error:
        if is_full(error):
            raise UserError(
                f"{path}: the disk is full; free some space (`dvc gc -w` drops unused cache) and run again"
            ) from error
        raise


def is_full(error: OSError | SafetensorError) -> bool:
    """Whether the disk or quota is full; safetensors reports the errno only in its message."""
    full = (errno.ENOSPC, errno.EDQUOT)
    if isinstance(error, OSError):
        return error.errno in full
    return any(f"(os error {number})" in str(error) for number in full)


def write_json(path: Path, value: Any) -> None:
    """Deterministic JSON: sorted keys, two-space indent, final newline, no NaN."""
    with whole_file(path) as staging:
        staging.write_text(json.dumps(value, indent=2, sort_keys=True, allow_nan=False) + "\n")


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object. Raises UserError naming the file when it is missing, broken or not an object."""
    try:
        value = json.loads(path.read_text())
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; `dvc repro` makes it") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: broken JSON ({error}); delete its folder and run `dvc repro`") from None
    if not isinstance(value, Mapping):
        raise UserError(f"{path}: expected a JSON object")
    return dict(value)
