"""One miniature chain, run once; tests that change it work on a copy."""

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.integration.project import Project
from tests.integration.server import Server, serving


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """The miniature chain after `dvc repro`."""
    project = Project(tmp_path_factory.mktemp("chain") / "project")
    project.repro()
    return project


@pytest.fixture
def copied(finished: Project, tmp_path: Path) -> Project:
    """A copy of the finished chain, with its cache, that a test may change."""
    project = Project.__new__(Project)
    project.folder = tmp_path / "copy"
    shutil.copytree(finished.folder, project.folder, symlinks=True)
    return project


@pytest.fixture
def new_project(tmp_path: Path) -> Callable[..., Project]:
    """Makes an empty project."""
    return lambda *arguments: Project(tmp_path / "project", *arguments)


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with serving(tmp_path_factory.mktemp("prefect")) as server:
        yield server
