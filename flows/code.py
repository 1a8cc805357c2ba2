"""Which code a clone runs."""

import subprocess
from pathlib import Path

from fewstep.config.base import PARAMS
from fewstep.core.errors import UserError

OURS = {str(PARAMS), "dvc.lock"}
"""What runs of the chain change in a clone."""


def git(folder: Path, *arguments: str) -> str:
    """What git answers."""
    return subprocess.run(["git", *arguments], cwd=folder, check=True, capture_output=True, text=True).stdout


def commit_of(root: Path) -> str:
    """The commit whose code this is. Raises UserError where anything but params.yaml and dvc.lock differs."""
    changed = {line[3:] for line in git(root, "status", "--porcelain").splitlines()} - OURS
    if changed:
        names = ", ".join(sorted(changed)[:5])
        raise UserError(
            f"{root}: {names}: not committed; workers have what is committed, so commit or drop it"
        )
    return git(root, "rev-parse", "HEAD").strip()


def follow(root: Path, commit: str) -> None:
    """Bring a worker's clone to this commit; params.yaml and dvc.lock are the flows' own.

    Raises UserError where other files are changed there, and where the commit is nowhere to be had.
    """
    if commit_of(root) == commit:
        return
    try:
        git(root, "fetch", "-q", "origin")
        git(root, "checkout", "-q", "--force", "--detach", commit)
    except subprocess.CalledProcessError as error:
        raise UserError(
            f"{root}: cannot have commit {commit[:12]}: {error.stderr.strip()}; push it to its origin"
        ) from None
