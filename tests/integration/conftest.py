"""One miniature chain, run once; tests that change it work on a copy."""

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from filelock import FileLock

from tests.integration.project import Project
from tests.integration.server import Server, serving


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """The miniature chain after `dvc repro`, the same for all processes of pytest-xdist."""
    base = tmp_path_factory.getbasetemp()
    shared = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base
    with FileLock(shared / "chain.lock"):
        if (shared / "chain.made").exists():
            return Project.at(shared / "chain")
        project = Project(shared / "chain")
        project.repro()
        (shared / "chain.made").touch()
        return project


@pytest.fixture
def copied(finished: Project, tmp_path: Path) -> Project:
    """A copy of the finished chain, with its cache, that a test may change."""
    # Not what comes and goes while another test looks at it.
    passing = shutil.ignore_patterns("tmp", "__pycache__")
    shutil.copytree(finished.folder, tmp_path / "copy", symlinks=True, ignore=passing)
    return Project.at(tmp_path / "copy")


@pytest.fixture
def new_project(tmp_path: Path) -> Callable[..., Project]:
    """Makes an empty project."""
    return lambda *arguments: Project(tmp_path / "project", *arguments)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A real Prefect server, which ends with the last test of a file: an idle one takes 3 % of a core."""
    with serving(tmp_path_factory.mktemp("prefect")) as server:
        yield server
