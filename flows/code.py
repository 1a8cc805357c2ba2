"""The git commit whose code a clone runs."""

import subprocess
from pathlib import Path

from fewstep.config.base import PARAMS
from fewstep.core.errors import UserError

OURS = {str(PARAMS), "dvc.lock"}
"""Tracked files that runs of the chain change in a clone."""


def git(folder: Path, *arguments: str) -> str:
    """Run git in `folder`; returns its output. Raises CalledProcessError."""
    return subprocess.run(["git", *arguments], cwd=folder, check=True, capture_output=True, text=True).stdout


def commit_of(root: Path) -> str:
    """The commit that is checked out. Raises UserError where more than params.yaml and dvc.lock differs."""
    changed = {line[3:] for line in git(root, "status", "--porcelain").splitlines()} - OURS
    if changed:
        names = ", ".join(sorted(changed)[:5])
        raise UserError(
            f"{root}: {names}: not committed; workers only get what is committed, so commit or drop it"
        )
    return git(root, "rev-parse", "HEAD").strip()


def follow(root: Path, commit: str) -> None:
    """Check out this commit in a worker's clone, over changes of params.yaml and dvc.lock.

    Raises UserError where other files are changed there, and where the commit cannot be fetched.
    """
    if commit_of(root) == commit:
        return
    try:
        git(root, "fetch", "-q", "origin")
        git(root, "checkout", "-q", "--force", "--detach", commit)
    except subprocess.CalledProcessError as error:
        raise UserError(
            f"{root}: cannot get commit {commit[:12]}: {error.stderr.strip()}; push it to its origin"
        ) from None
