"""`fewstep check`: whether this machine can run the chain, its repository, its disk and DVC's cache."""

import errno
import subprocess
import sys
from pathlib import Path

import pytest

from fewstep.checks import machine
from fewstep.checks.checklist import check
from fewstep.checks.plan import plan
from fewstep.checks.states import largest
from fewstep.core.errors import UserError
from tests.unit.test_checks import chain_of

DVC = [sys.executable, "-m", "dvc"]


@pytest.fixture(autouse=True)
def _alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A working folder, on a machine with one process."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(machine, "processes", lambda: 1)


@pytest.mark.parametrize(
    ("prepared", "message"),
    [
        ([], "no .dvc here"),
        ([[*DVC, "init", "-q", "--no-scm"]], None),
        ([["mkdir", ".dvc"]], "no git repository, which DVC needs"),
        ([["git", "init", "-q"], [*DVC, "init", "-q"]], None),
    ],
)
def test_dvc_needs_a_git_repository(prepared: list[list[str]], message: str | None) -> None:
    Path("dvc.yaml").write_text("stages: {}\n")
    for command in prepared:
        subprocess.run(command, check=True)
    faults = list(machine.repository())
    assert faults == [] if message is None else message in faults[0]


def test_a_full_disk_is_foreseen(monkeypatch: pytest.MonkeyPatch) -> None:
    class Usage:
        free = 10**6

    monkeypatch.setattr("shutil.disk_usage", lambda _: Usage)
    chain = chain_of({})
    disk = {stage.name: stage.disk or 0 for stage in plan(chain)}
    artifacts = 2 * sum(disk.values()) + disk["generate_triplets@0"]
    states = 2 * largest(chain)
    assert states > 0
    message = f"about {(artifacts + states) / 1e9:.1f} GB, of which {states / 1e9:.1f} GB are training states"
    with pytest.raises(UserError, match=f"disk: the chain writes {message}, 0.0 GB are free here"):
        check(chain)
    # Enough for the artifacts alone.
    monkeypatch.setattr(Usage, "free", artifacts + states - 1)
    with pytest.raises(UserError, match="disk: the chain writes"):
        check(chain)
    monkeypatch.setattr(Usage, "free", artifacts + states)
    check(chain)
    # With links the cache takes nothing.
    Path(".dvc").mkdir()
    Path(".dvc/config").write_text('[cache]\n    type = "hardlink,copy"\n[\'remote "there"\']\n    url = x\n')
    assert machine.cache_links()
    monkeypatch.setattr(Usage, "free", sum(disk.values()) + states)
    check(chain)
    monkeypatch.setattr(Usage, "free", sum(disk.values()) + states - 1)
    with pytest.raises(UserError, match="disk: the chain writes"):
        check(chain)


@pytest.mark.parametrize("local", ["type = copy", "type = reflink,hardlink,copy", "dir = /elsewhere"])
def test_a_cache_that_does_not_link_is_known(local: str) -> None:
    Path(".dvc").mkdir()
    (config := Path(".dvc/config")).write_text('[cache]\n    type = "hardlink,reflink,copy"\n')
    assert machine.cache_links()
    Path(".dvc/config.local").write_text(f"[cache]\n    {local}\n")
    assert not machine.cache_links()
    Path(".dvc/config.local").unlink()
    config.unlink()
    assert not machine.cache_links(), "DVC's default copies where there are no reflinks"


def test_a_cache_elsewhere_is_asked_itself(tmp_path: Path) -> None:
    """As in the folders of an ablation's variants, which share the cache of the workspace."""
    Path(".dvc").mkdir()
    (tmp_path / "cache").mkdir()
    Path(".dvc/config").write_text(f"[cache]\n    type = hardlink\n    dir = {tmp_path / 'cache'}\n")
    assert machine.cache_links()
    assert not [*(tmp_path / "cache").iterdir()]


MEMORY = Path("/dev/shm")
"""A file system of its own on Linux."""


@pytest.mark.skipif(not MEMORY.is_dir(), reason="there is no second file system")
def test_a_cache_on_another_disk_does_not_link(tmp_path: Path) -> None:
    if MEMORY.stat().st_dev == tmp_path.stat().st_dev:
        pytest.skip("the tests run on it")
    Path(".dvc").mkdir()
    Path(".dvc/config").write_text(f"[cache]\n    type = hardlink\n    dir = {MEMORY}\n")
    assert not machine.cache_links()


@pytest.mark.parametrize("text", ["no section\n", "[cache]\n    type = wormhole\n", "[cache\n"])
def test_settings_that_dvc_refuses_are_one_line(text: str) -> None:
    Path("dvc.yaml").write_text("stages: {}\n")
    Path(".dvc").mkdir()
    Path(".dvc/config").write_text(text)
    (fault,) = machine.repository()
    assert fault.startswith(".dvc/config or .dvc/config.local: ") and "\n" not in fault
    assert not machine.cache_links()


def test_a_file_system_without_links_is_known(monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(path: Path, target: Path) -> None:
        raise PermissionError(errno.EPERM, "no links here")

    Path(".dvc").mkdir()
    Path(".dvc/config").write_text("[cache]\n    type = hardlink\n")
    monkeypatch.setattr(Path, "hardlink_to", refused)
    assert not machine.cache_links()
    assert [*Path(".dvc").iterdir()] == [Path(".dvc/config")]
