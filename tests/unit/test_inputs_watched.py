"""One hash per input outside the project: it changes with every name and content, and with nothing else."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from fewstep.sources.watched import look


def make(root: Path) -> None:
    (root / "b/c").mkdir(parents=True)
    for name in ("a.jpg", "a.txt", "b/1.jpg", "b/c/2.jpg"):
        (root / name).write_text(name)


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    make(tmp_path / "photos")
    return tmp_path / "photos"


def mend(root: Path) -> None:
    (root / "a.txt").write_text("a.TXT")


def mend_keeping_the_time(root: Path) -> None:
    """A copy over the old file: same size, same time, another inode."""
    old = (root / "a.txt").stat()
    (root / "new").write_text("a.TXT")
    os.utime(root / "new", ns=(old.st_atime_ns, old.st_mtime_ns))
    (root / "new").replace(root / "a.txt")


def add(root: Path) -> None:
    (root / "b/c/3.jpg").write_text("3")


def remove(root: Path) -> None:
    (root / "b/1.jpg").unlink()


def rename(root: Path) -> None:
    (root / "b/1.jpg").rename(root / "b/0.jpg")


def link_a_folder(root: Path) -> None:
    make(root.parent / "disk2")
    (root / "more").symlink_to(root.parent / "disk2", target_is_directory=True)


@pytest.mark.parametrize(
    "change", [mend, mend_keeping_the_time, add, remove, rename, link_a_folder, shutil.rmtree]
)
def test_every_change_is_seen(change: Callable[[Path], None], photos: Path, tmp_path: Path) -> None:
    before = look([photos], tmp_path / "known.sqlite")
    assert look([photos], tmp_path / "known.sqlite") == before
    change(photos)
    after = look([photos], tmp_path / "known.sqlite")
    assert after.sha256 != before.sha256
    assert after == look([photos], tmp_path / "fresh.sqlite"), "what was known before changes no hash"


def test_what_is_behind_a_link_is_watched_and_a_circle_ends(photos: Path, tmp_path: Path) -> None:
    link_a_folder(photos)
    (photos / "b/up").symlink_to(photos, target_is_directory=True)
    before = look([photos], tmp_path / "known.sqlite")
    assert before.files == 8
    mend(tmp_path / "disk2")
    assert look([photos], tmp_path / "known.sqlite").sha256 != before.sha256


def test_neither_place_nor_time_counts(photos: Path, tmp_path: Path) -> None:
    here = look([photos], tmp_path / "known.sqlite")
    shutil.copytree(photos, tmp_path / "elsewhere/other")
    os.utime(photos / "a.jpg", (1, 1))
    there = look([tmp_path / "elsewhere/other"], tmp_path / "known.sqlite")
    assert here == there == look([photos], tmp_path / "known.sqlite")


def test_no_content_is_read_twice(photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = look([photos], tmp_path / "known.sqlite")

    def refuse(file: Path) -> str:
        raise AssertionError(f"{file} was read again")

    monkeypatch.setattr("fewstep.sources.watched.sha256", refuse)
    assert look([photos], tmp_path / "known.sqlite") == before


def test_what_is_not_there_is_counted_apart_from_what_is(photos: Path, tmp_path: Path) -> None:
    (photos / "gone.jpg").symlink_to(tmp_path / "nowhere")
    with_a_broken_link = look([photos], tmp_path / "known.sqlite")
    assert (with_a_broken_link.files, with_a_broken_link.missing) == (5, 0)
    missing = look([tmp_path / "nowhere"], tmp_path / "known.sqlite")
    assert (missing.files, missing.missing) == (0, 1)
    assert missing.sha256 != look([], tmp_path / "known.sqlite").sha256
