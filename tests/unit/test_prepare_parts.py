"""Parts and shards of `prepare_data`: the same bytes for any number of workers, and nothing made twice."""

import json
import os
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from fewstep.artifacts.workspace import Workspace
from fewstep.config.data import DataConfig
from fewstep.core.errors import UserError
from fewstep.core.files import read_json
from fewstep.data.shards import read_index
from fewstep.preparation.parts import LATER
from fewstep.preparation.prepare import prepare
from fewstep.sources import folder, units
from fewstep.sources.sample import Sample, Skipped, Unreadable
from fewstep.sources.units import Unit
from tests.photos import make_photo_folder

PHOTOS = 24
RUN = 5
"""Entries per unit in these tests."""


@pytest.fixture(autouse=True)
def _small_units(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(folder, "runs", partial(units.runs, size=RUN))
    monkeypatch.setenv("FEWSTEP_WORKERS", "1")


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Photographs in two folders, with duplicates, unreadable and skipped files among them."""
    path = tmp_path / "photos"
    make_photo_folder(path, PHOTOS)
    below = path / "below"
    below.mkdir()
    for i in range(7):
        (source,) = (file for file in path.glob(f"{i:03d}.*") if file.suffix != ".txt")
        shutil.copy(source, below)
        caption = (path / f"{i:03d}.txt").read_text() if i % 2 else "another caption"
        (below / f"{i:03d}.txt").write_text(caption)
    (path / "005b.jpg").write_bytes((path / "000.jpg").read_bytes()[:900])
    (path / "005b.txt").write_text("half an image")
    (path / "006b.jpg").write_bytes(b"")
    (path / "z.avif").write_bytes(b"")
    return path


def config_of(path: Path, **values: Any) -> DataConfig:
    kept = {"resolution": 32, "heldout": 0.3, "shard_size": 4, "filters": {"max_quarantined_share": 0.5}}
    return DataConfig(**{"source": "folder", "path": str(path)} | kept | values)


def table_of(photos: Path) -> Path:
    rows = [{"file_name": f"{i:03d}.jpg", "caption": f"row {i}", "labels": {"n": str(i)}} for i in range(12)]
    (photos / "metadata.jsonl").write_text("\n".join(map(json.dumps, [*rows, *rows[:3]])))
    return photos


def tars_of(photos: Path) -> Path:
    """Three archives, of which one is cut off."""
    tars = photos.with_name("tars")
    tars.mkdir()
    images = sorted(file for file in photos.glob("0*.*") if file.suffix != ".txt")
    for number in range(3):
        with tarfile.open(tars / f"{number}.tar", "w") as archive:
            for file in images[number::3]:
                (tars / "record.json").write_text(json.dumps({"caption": f"image {file.stem}"}))
                archive.add(file, file.name)
                archive.add(tars / "record.json", f"{file.stem}.json")
    content = (tars / "1.tar").read_bytes()
    (tars / "1.tar").write_bytes(content[: len(content) // 2])
    return tars


def everything(path: Path) -> dict[str, bytes]:
    return {str(p.relative_to(path)): p.read_bytes() for p in sorted(path.rglob("*")) if p.is_file()}


@pytest.mark.parametrize(
    ("place_of", "values"),
    [
        (lambda photos: photos, {}),
        (lambda photos: photos, {"count": 13}),
        (lambda photos: photos, {"split_by": "caption"}),
        (table_of, {}),
        (tars_of, {"source": "webdataset"}),
        (tars_of, {"source": "webdataset", "count": 10}),
    ],
    ids=["folder", "folder, cut", "by caption", "table", "tars", "tars, cut"],
)
def test_bytes_do_not_depend_on_workers_and_units(
    place_of: Callable[[Path], Path],
    values: dict[str, Any],
    photos: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    config = config_of(place_of(photos), **values)
    outcomes = {}
    for workers, size in ((1, 1000), (1, RUN), (3, RUN)):
        monkeypatch.setenv("FEWSTEP_WORKERS", str(workers))
        monkeypatch.setattr(folder, "runs", partial(units.runs, size=size))
        out = tmp_path / f"{workers}-{size}"
        outcomes[out] = str(prepare(config, 0, out))
    assert len(set(outcomes.values())) == 1
    one, *others = map(everything, outcomes)
    assert all(other == one for other in others)
    assert len(read_index(tmp_path / f"1-{RUN}").splits["train"]) > 1 or config.count


def test_shapes_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = DataConfig(source="shapes", count=600, resolution=16, heldout=0.3, shard_size=100)
    counts: list[int] = []
    prepare(config, 0, tmp_path / "one", counts.append)
    assert counts == [units.RUN, 2 * units.RUN, 600]
    monkeypatch.setenv("FEWSTEP_WORKERS", "2")
    prepare(config, 0, tmp_path / "two")
    assert everything(tmp_path / "one") == everything(tmp_path / "two")


class Reading:
    """Stands before `folder.read`: records the units that are read and can be interrupted."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.read: list[str] = []
        self.interrupt_at: int | None = None
        self._original = folder.read
        monkeypatch.setattr(folder, "read", self)

    def __call__(self, unit: Unit, config: DataConfig, seed: int) -> Iterator[Sample | Unreadable | Skipped]:
        if len(self.read) == self.interrupt_at:
            raise KeyboardInterrupt
        self.read.append(unit.name)
        yield from self._original(unit, config, seed)


@pytest.fixture
def reading(monkeypatch: pytest.MonkeyPatch) -> Reading:
    return Reading(monkeypatch)


def work_of(config: DataConfig) -> Workspace:
    return Workspace("prepare_data", {"data": config.model_dump(mode="json", exclude=LATER)}, {})


def interrupted(config: DataConfig, reading: Reading, after: int, out: Path) -> None:
    """Prepare `after` units, then stop as by Ctrl-C."""
    reading.interrupt_at = len(reading.read) + after
    work = work_of(config)
    with pytest.raises(KeyboardInterrupt):
        prepare(config, 0, out, work=work)
    work.leave()
    reading.interrupt_at = None
    reading.read.clear()


def resumed(config: DataConfig, out: Path) -> None:
    work = work_of(config)
    prepare(config, 0, out, work=work)
    work.finish()
    assert not work.folder.exists()


def test_finished_parts_are_not_made_again(photos: Path, tmp_path: Path, reading: Reading) -> None:
    config = config_of(photos)
    prepare(config, 0, tmp_path / "whole")
    order = list(reading.read)
    assert len(order) > 5
    reading.read.clear()
    interrupted(config, reading, 4, tmp_path / "data")
    assert not (tmp_path / "data").exists()
    resumed(config, tmp_path / "data")
    assert reading.read == order[4:]
    assert everything(tmp_path / "data") == everything(tmp_path / "whole")


def test_a_part_is_made_again_when_one_of_its_files_has_changed(
    photos: Path, tmp_path: Path, reading: Reading
) -> None:
    config = config_of(photos)
    prepare(config, 0, tmp_path / "before")
    order = list(reading.read)
    reading.read.clear()
    interrupted(config, reading, 4, tmp_path / "data")
    (photos / "006.txt").write_text("a corrected caption")
    resumed(config, tmp_path / "data")
    changed = next(
        name for name in order if name.partition(" to ")[0] <= "006.jpg" <= name.rpartition(" ")[2]
    )
    assert reading.read == [changed, *order[4:]]
    prepare(config, 0, tmp_path / "whole")
    assert everything(tmp_path / "data") == everything(tmp_path / "whole") != everything(tmp_path / "before")


@pytest.mark.parametrize(
    "later",
    [
        {"heldout": 0.5},
        {"split_by": "caption"},
        {"shard_size": 6},
        {"count": 20},
        {"filters": {"max_quarantined_share": 0.4}},
    ],
    ids=str,
)
def test_what_concerns_the_split_may_change_meanwhile(
    later: dict[str, Any], photos: Path, tmp_path: Path, reading: Reading
) -> None:
    interrupted(config_of(photos), reading, 3, tmp_path / "data")
    config = config_of(photos, **later)
    resumed(config, tmp_path / "data")
    after = list(reading.read)
    reading.read.clear()
    prepare(config, 0, tmp_path / "whole")
    assert after == reading.read[3:]
    assert everything(tmp_path / "data") == everything(tmp_path / "whole")


@pytest.mark.parametrize("changed", [{"resolution": 40}, {"filters": {"min_side": 200}}], ids=str)
def test_what_concerns_the_images_may_not(
    changed: dict[str, Any],
    photos: Path,
    tmp_path: Path,
    reading: Reading,
    capsys: pytest.CaptureFixture[str],
) -> None:
    interrupted(config_of(photos), reading, 3, tmp_path / "data")
    filters = {"max_quarantined_share": 0.5} | changed.get("filters", {})
    config = config_of(photos, **changed | {"filters": filters})
    resumed(config, tmp_path / "data")
    assert "does not resume unfinished work (3 finished parts)" in capsys.readouterr().out
    after = list(reading.read)
    reading.read.clear()
    prepare(config, 0, tmp_path / "whole")
    assert after == reading.read
    assert everything(tmp_path / "data") == everything(tmp_path / "whole")


def test_finished_shards_are_not_written_again(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = config_of(photos)
    work = work_of(config)
    prepare(config, 0, tmp_path / "whole", work=work)
    before = {file.name: file.stat().st_mtime_ns for file in work.folder.iterdir()}
    assert sum(name.startswith("shard-") for name in before) > 5
    prepare(config, 0, tmp_path / "data", work=work)
    assert {file.name: file.stat().st_mtime_ns for file in work.folder.iterdir()} == before
    assert everything(tmp_path / "data") == everything(tmp_path / "whole")


def test_a_damaged_part_is_named(photos: Path, tmp_path: Path) -> None:
    config = config_of(photos)
    work = work_of(config)
    prepare(config, 0, tmp_path / "whole", work=work)
    part = sorted(work.folder.glob("part-*.zip"))[2]
    part.write_bytes(part.read_bytes()[:-100])
    with pytest.raises(UserError, match=rf"{part.name}: damaged \(.*\); delete this file and run again"):
        prepare(config, 0, tmp_path / "data", work=work)
    part.unlink()
    prepare(config, 0, tmp_path / "data", work=work)
    assert everything(tmp_path / "data") == everything(tmp_path / "whole")


def test_the_index_records_work_of_other_code(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, reading: Reading
) -> None:
    config = config_of(photos)
    interrupted(config, reading, 3, tmp_path / "data")
    (old,) = Path(".checkpoints/prepare_data").iterdir()
    origin = read_json(old / "origin.json")
    origin["source"]["fewstep.core.text"] = "another hash"
    (old / "origin.json").write_text(json.dumps(origin))
    old.rename(old.with_name("another"))
    monkeypatch.setenv("FEWSTEP_RESUME", "another")
    resumed(config, tmp_path / "data")
    assert len(reading.read) == 4
    assert read_json(tmp_path / "data/index.json")["resumed"] == ["code fewstep.core.text"]
    assert read_index(tmp_path / "data").resumed == ("code fewstep.core.text",)


def test_workers_import_no_torch() -> None:
    """It takes seconds, and hundreds of megabytes in each of them."""
    modules = "fewstep.core.pool, fewstep.preparation.parts, fewstep.preparation.assemble"
    sources = "fewstep.sources.folder, fewstep.sources.shapes"
    code = f"import sys, {modules}, {sources}; assert 'torch' not in sys.modules"
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    subprocess.run([sys.executable, "-c", code], check=True, env=environment)
