"""The stage as a whole: reproducible bytes, stable splits, honest counts, readable refusals."""

import hashlib
import json
import os
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from fewstep.artifacts.folder import read_json
from fewstep.config.data import DataConfig
from fewstep.data.shards import SPLITS, Picture, captions, open_pictures, read_index, read_shard
from fewstep.errors import UserError
from fewstep.keyed import Key
from fewstep.preparation.prepare import prepare
from fewstep.sources import shapes
from tests.photos import make_photo_folder

SHAPES = DataConfig(source="shapes", count=120, resolution=16, heldout=0.3, shard_size=25)


@pytest.fixture(scope="module")
def shapes_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("shapes") / "data"
    prepare(SHAPES, 0, out)
    return out


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("photos") / "photos"
    make_photo_folder(path, 24)
    return path


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def of_folder(path: Path, **values: Any) -> DataConfig:
    return DataConfig(**{"source": "folder", "path": str(path), "resolution": 32, "heldout": 0.3, **values})


def pictures_of(out: Path, split: str) -> dict[str, Picture]:
    shards = read_index(out).splits[split]
    return {picture.key: picture for shard in shards for picture in read_shard(out / shard.shard)}


def everything(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def test_two_runs_are_byte_identical(photos: Path, shapes_data: Path, tmp_path: Path) -> None:
    prepare(SHAPES, 0, tmp_path / "again")
    assert everything(tmp_path / "again") == everything(shapes_data)
    for name in ("one", "two"):
        (photos / "broken.jpg").write_bytes(b"\xff\xd8 no picture")
        (photos / "broken.txt").write_text("a broken picture")
        os.utime(photos / "000.jpg")
        prepare(of_folder(photos), len(name), tmp_path / name)
        (photos / "broken.jpg").unlink()
    assert everything(tmp_path / "one") == everything(tmp_path / "two")
    assert str(photos).encode() not in b"".join(everything(tmp_path / "one").values())


def test_index_is_what_lies_there(shapes_data: Path) -> None:
    index = read_index(shapes_data)
    assert index.resolution == 16
    assert index.labels == {attribute: tuple(sorted(values)) for attribute, values in shapes.LABELS.items()}
    listed = {shard.shard for split in SPLITS for shard in index.splits[split]}
    assert listed == {name for name in everything(shapes_data) if name.endswith(".tar")}
    for split in SPLITS:
        *full, last = index.splits[split]
        assert all(shard.samples == 25 for shard in full)
        assert 0 < last.samples <= 25
        for shard in index.splits[split]:
            content = (shapes_data / shard.shard).read_bytes()
            assert hashlib.sha256(content).hexdigest() == shard.sha256
            assert len(read_shard(shapes_data / shard.shard)) == shard.samples


def test_samples_are_conserved(shapes_data: Path) -> None:
    statistics = read_json(shapes_data / "statistics.json")
    pictures = {**pictures_of(shapes_data, "train"), **pictures_of(shapes_data, "heldout")}
    assert statistics["samples"] == statistics["kept"] == len(pictures) == 120
    given = {(s.caption, tuple((s.labels or {}).values())) for s in shapes.samples(SHAPES, 0)}
    assert {(p.caption, tuple((p.labels or {}).values())) for p in pictures.values()} == given
    assert all(p.pixels.shape == (16, 16, 3) and p.pixels.dtype == np.uint8 for p in pictures.values())


def test_captions_without_decoding_are_those_of_the_pictures(shapes_data: Path) -> None:
    expected = [picture.caption for picture in pictures_of(shapes_data, "train").values()]
    assert list(captions(shapes_data, "train")) == expected


def test_stream_over_shards_visits_every_picture_once(shapes_data: Path) -> None:
    stream = open_pictures(shapes_data, "train", Key(0, "order"))
    assert {p.key for p in stream.rows(range(stream.total))} == pictures_of(shapes_data, "train").keys()


def test_added_data_moves_no_sample_to_the_other_side(tmp_path: Path) -> None:
    for name, count in (("few", 60), ("more", 120)):
        prepare(SHAPES.model_copy(update={"count": count}), 0, tmp_path / name)
    for split in SPLITS:
        few, more = (pictures_of(tmp_path / name, split).keys() for name in ("few", "more"))
        assert few < more


def test_split_by_caption_holds_prompts_out(tmp_path: Path) -> None:
    prepare(SHAPES.model_copy(update={"split_by": "caption", "count": 600}), 0, tmp_path / "data")
    sides = [{p.caption for p in pictures_of(tmp_path / "data", split).values()} for split in SPLITS]
    assert not sides[0] & sides[1]


def test_photographs_of_every_kind(photos: Path, tmp_path: Path) -> None:
    told: list[int] = []
    prepare(of_folder(photos), 0, tmp_path / "data", told.append)
    statistics = read_json(tmp_path / "data" / "statistics.json")
    assert (statistics["kept"], statistics["quarantined"], statistics["rejected"]) == (24, {}, {})
    assert told == list(range(1, 25))
    assert read_index(tmp_path / "data").labels is None
    assert (tmp_path / "data" / "quarantine.jsonl").read_text() == ""


def test_rejected_and_quarantined_are_told_apart(photos: Path, tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    for path in photos.iterdir():
        (source / path.name).write_bytes(path.read_bytes())
    whole = (photos / "000.jpg").read_bytes()
    (source / "copy.jpg").write_bytes(whole)
    (source / "copy.txt").write_text("the same picture, another caption")
    (source / "cut.jpg").write_bytes(whole[: len(whole) // 2])
    (source / "cut.txt").write_text("half a picture")
    (source / "silent.jpg").write_bytes(whole)
    (source / "blank.jpg").write_bytes(whole)
    (source / "blank.txt").write_text(" \n")
    Image.new("RGB", (400, 31)).save(source / "flat.png")
    (source / "flat.txt").write_text("a very flat picture")
    filters = {"min_side": 32, "max_quarantined_share": 0.1}
    prepare(of_folder(source, filters=filters), 0, tmp_path / "data")
    statistics = read_json(tmp_path / "data" / "statistics.json")
    assert statistics["samples"] == 24 + 5
    assert statistics["rejected"] == {"caption too short": 1, "duplicate": 1, "too small": 1}
    assert statistics["quarantined"] == {"corrupt picture": 1, "no caption": 1}
    lines = (tmp_path / "data" / "quarantine.jsonl").read_text().splitlines()
    assert [(e["name"], e["reason"]) for e in map(json.loads, lines)] == [
        ("cut.jpg", "corrupt picture"),
        ("silent.jpg", "no caption"),
    ]


def test_too_much_quarantine_fails_names_the_first_and_keeps_the_list(tmp_path: Path) -> None:
    source = tmp_path / "source"
    make_photo_folder(source, 4)
    for i in range(5):
        (source / f"bad{i}.jpg").write_bytes(b"")
        (source / f"bad{i}.txt").write_text("nothing")
    with pytest.raises(UserError) as caught:
        prepare(of_folder(source), 0, tmp_path / "data")
    message = str(caught.value)
    assert message.startswith("5 of 9 samples cannot be read")
    assert "bad0.jpg: corrupt picture (no jpeg, png or webp file)" in message
    assert "bad3.jpg" not in message
    assert "logs/quarantine.jsonl" in message
    assert "data.filters.max_quarantined_share = 0.05" in message
    assert len(Path("logs/quarantine.jsonl").read_text().splitlines()) == 5
    assert not (tmp_path / "data").exists()


def test_share_at_the_limit_passes(tmp_path: Path) -> None:
    source = tmp_path / "source"
    make_photo_folder(source, 9)
    (source / "bad.jpg").write_bytes(b"")
    (source / "bad.txt").write_text("nothing")
    prepare(of_folder(source, filters={"max_quarantined_share": 0.1}), 0, tmp_path / "data")


@pytest.mark.parametrize(("heldout", "empty"), [(1e-9, "heldout"), (1 - 1e-9, "train")])
def test_neither_side_may_be_empty(tmp_path: Path, heldout: float, empty: str) -> None:
    with pytest.raises(
        UserError, match=f"of 20 samples 20 are kept .* none of them falls on the {empty} side"
    ):
        prepare(SHAPES.model_copy(update={"count": 20, "heldout": heldout}), 0, tmp_path / "data")


def test_a_failure_leaves_the_old_data_set_as_it_was(tmp_path: Path) -> None:
    prepare(SHAPES, 0, tmp_path / "data")
    before = everything(tmp_path / "data")
    with pytest.raises(UserError):
        prepare(of_folder(tmp_path / "nowhere"), 0, tmp_path / "data")
    assert everything(tmp_path) == {f"data/{name}": content for name, content in before.items()}


def test_count_takes_the_first(photos: Path, tmp_path: Path) -> None:
    prepare(of_folder(photos, count=10, heldout=0.5), 0, tmp_path / "data")
    assert read_json(tmp_path / "data" / "statistics.json")["samples"] == 10


# Strict reading


def rewrite(source: Path, target: Path, keep: Any) -> None:
    with tarfile.open(source) as old, tarfile.open(target, "w") as new:
        for i, member in enumerate(old):
            if keep(i):
                new.addfile(member, old.extractfile(member))


@pytest.mark.parametrize(("dropped", "suffix"), [(4, "json"), (5, "png")])
def test_missing_member_names_file_and_sample(
    shapes_data: Path, tmp_path: Path, dropped: int, suffix: str
) -> None:
    shard = shapes_data / "train/00000.tar"
    rewrite(shard, tmp_path / "a.tar", lambda i: i != dropped)
    key = read_shard(shard)[2].key
    with pytest.raises(UserError, match=rf"a\.tar: sample {key} has no \.{suffix}"):
        read_shard(tmp_path / "a.tar")


def test_truncated_shard_names_file_and_last_good_sample(shapes_data: Path, tmp_path: Path) -> None:
    shard = shapes_data / "train/00000.tar"
    with tarfile.open(shard) as archive:
        cut = archive.getmembers()[5].offset_data + 10
    (tmp_path / "a.tar").write_bytes(shard.read_bytes()[:cut])
    with pytest.raises(UserError, match=rf"a\.tar: broken after sample {read_shard(shard)[1].key}"):
        read_shard(tmp_path / "a.tar")


def test_no_tar_at_all(tmp_path: Path) -> None:
    (tmp_path / "a.tar").write_bytes(b"no tar" * 1000)
    with pytest.raises(UserError, match=r"a\.tar: broken at its start"):
        read_shard(tmp_path / "a.tar")
    with pytest.raises(UserError, match=r"b\.tar: no such file"):
        read_shard(tmp_path / "b.tar")


def test_changed_shard_is_refused_by_its_hash(tmp_path: Path) -> None:
    prepare(SHAPES, 0, tmp_path / "data")
    shard = tmp_path / "data/train/00000.tar"
    shard.write_bytes(shard.read_bytes() + bytes(512))
    stream = open_pictures(tmp_path / "data", "train", Key(0, "order"))
    with pytest.raises(UserError, match=r"train/00000\.tar: differs from the hash in .*index\.json"):
        stream.rows(range(stream.total))


def test_wrong_index_names_the_key(tmp_path: Path) -> None:
    (tmp_path / "index.json").write_text('{"resolution": "wide", "labels": null, "splits": {}}')
    with pytest.raises(UserError, match=r"index\.json: resolution = 'wide'"):
        read_index(tmp_path)
