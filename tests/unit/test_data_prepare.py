"""The stage as a whole: reproducible bytes, stable splits, honest counts, readable refusals."""

import hashlib
import json
import os
import shutil
import tarfile
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from stages.prepare_data import main as prepare_data

from fewstep.config.data import DataConfig
from fewstep.core.errors import UserError
from fewstep.core.files import read_json
from fewstep.core.keyed import Key
from fewstep.data.shards import SPLITS, ImageRecord, captions, open_images, read_index, read_shard
from fewstep.data.stream import Stream
from fewstep.evaluation.evaluation_set import distinct
from fewstep.preparation.examine import Prepared, examine
from fewstep.preparation.prepare import prepare
from fewstep.sampling.triplets import prompts_of
from fewstep.sources import folder, shapes
from fewstep.sources.sample import Sample, Skipped, Unreadable
from fewstep.sources.units import Unit
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


def images_of(out: Path, split: str) -> dict[str, ImageRecord]:
    shards = read_index(out).splits[split]
    return {image.key: image for shard in shards for image in read_shard(out / shard.shard)}


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
        (photos / "broken.txt").unlink()
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
    images = {**images_of(shapes_data, "train"), **images_of(shapes_data, "heldout")}
    assert statistics["samples"] == statistics["kept"] == len(images) == 120
    expected = {(s.caption, tuple((s.labels or {}).values())) for s in shapes.samples(SHAPES, 0)}
    assert {(p.caption, tuple((p.labels or {}).values())) for p in images.values()} == expected
    assert all(p.pixels.shape == (16, 16, 3) and p.pixels.dtype == np.uint8 for p in images.values())


def test_captions_without_decoding_are_those_of_the_images(shapes_data: Path) -> None:
    expected = [image.caption for image in images_of(shapes_data, "train").values()]
    assert list(captions(shapes_data, "train")) == expected


def test_stream_over_shards_visits_every_image_once(shapes_data: Path) -> None:
    stream = open_images(shapes_data, "train", Key(0, "order"))
    assert {p.key for p in stream.rows(range(stream.total))} == images_of(shapes_data, "train").keys()


def test_added_data_moves_no_sample_to_the_other_side(tmp_path: Path) -> None:
    for name, count in (("few", 60), ("more", 120)):
        prepare(SHAPES.model_copy(update={"count": count}), 0, tmp_path / name)
    for split in SPLITS:
        few, more = (images_of(tmp_path / name, split).keys() for name in ("few", "more"))
        assert few < more


def test_split_by_caption_holds_prompts_out(tmp_path: Path) -> None:
    prepare(SHAPES.model_copy(update={"split_by": "caption", "count": 600}), 0, tmp_path / "data")
    sides = [{p.caption for p in images_of(tmp_path / "data", split).values()} for split in SPLITS]
    assert not sides[0] & sides[1]


def test_photographs_of_every_kind(photos: Path, tmp_path: Path) -> None:
    counts: list[int] = []
    prepare(of_folder(photos), 0, tmp_path / "data", counts.append)
    statistics = read_json(tmp_path / "data" / "statistics.json")
    assert (statistics["kept"], statistics["quarantined"], statistics["rejected"]) == (24, {}, {})
    assert statistics["skipped"] == {}
    assert counts == [24]
    assert read_index(tmp_path / "data").labels is None
    for name in ("quarantine.jsonl", "skipped.jsonl"):
        assert (tmp_path / "data" / name).read_text() == ""


def test_rejected_and_quarantined_are_counted_apart(photos: Path, tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    for path in photos.iterdir():
        (source / path.name).write_bytes(path.read_bytes())
    whole = (photos / "000.jpg").read_bytes()
    (source / "copy.jpg").write_bytes(whole)
    (source / "copy.txt").write_text((photos / "000.txt").read_text() + "\r\n")
    (source / "other.jpg").write_bytes(whole)
    (source / "other.txt").write_text("the same image, another caption")
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
    assert (statistics["samples"], statistics["kept"]) == (24 + 6, 25)
    assert statistics["rejected"] == {"caption too short": 1, "duplicate": 1, "too small": 1}
    assert statistics["quarantined"] == {"corrupt image": 1, "no caption": 1}
    lines = (tmp_path / "data" / "quarantine.jsonl").read_text().splitlines()
    assert [(e["name"], e["reason"]) for e in map(json.loads, lines)] == [
        ("cut.jpg", "corrupt image"),
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
    assert "bad0.jpg: corrupt image (" in message
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


@pytest.mark.parametrize(("count", "more"), [(10, True), (24, False), (25, False), (None, False)])
def test_count_takes_the_first_and_reports_whether_there_are_more(
    photos: Path, tmp_path: Path, count: int | None, more: bool
) -> None:
    outcome = prepare(of_folder(photos, count=count, heldout=0.5), 0, tmp_path / "data")
    assert read_json(tmp_path / "data" / "statistics.json")["samples"] == min(count or 24, 24)
    message = "; stopped after data.count = 10 samples, the source has more"
    assert str(outcome).endswith(message) == more


def test_at_most_one_sample_beyond_count_is_read(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[str] = []

    def counted(unit: Unit, config: DataConfig, seed: int) -> Iterator[Sample | Unreadable | Skipped]:
        for entry in folder_read(unit, config, seed):
            read.append(entry.name)
            yield entry

    folder_read = folder.read
    monkeypatch.setattr(folder, "read", counted)
    prepare(of_folder(photos, count=10, heldout=0.5), 0, tmp_path / "data")
    assert len(read) == 11


def test_the_last_line_accounts_for_everything(photos: Path, tmp_path: Path) -> None:
    source = tmp_path / "source"
    shutil.copytree(photos, source)
    for i in range(2):
        (source / f"old{i}.avif").write_bytes(b"")
    (source / ".DS_Store").write_bytes(b"")
    (source / "zz.jpg").write_bytes(b"")
    (source / "zz.txt").write_text("empty")
    (source / "0copy.jpg").write_bytes((source / "000.jpg").read_bytes())
    (source / "0copy.txt").write_bytes((source / "000.txt").read_bytes())
    outcome = prepare(of_folder(source), 0, tmp_path / "data")
    train, heldout = outcome.splits["train"], outcome.splits["heldout"]
    assert str(outcome) == (
        f"26 samples: 24 kept ({train} train, {heldout} heldout), 1 rejected (1 duplicate), "
        "1 quarantined (1 corrupt image); skipped 3 files (2 format not decoded (.avif), 1 hidden file)"
    )
    lines = (tmp_path / "data" / "skipped.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == [
        {"name": ".DS_Store", "reason": "hidden file"},
        {"name": "old0.avif", "reason": "format not decoded (.avif)"},
        {"name": "old1.avif", "reason": "format not decoded (.avif)"},
    ]
    skipped = read_json(tmp_path / "data" / "statistics.json")["skipped"]
    assert skipped == {"format not decoded (.avif)": 2, "hidden file": 1}


def test_the_stage_reads_below_the_home_folder_and_ends_with_that_line(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("HOME", str(photos.parent))
    data = {"source": "folder", "path": "~/photos", "resolution": 32, "heldout": 0.3, "count": 20}
    (tmp_path / "params.yaml").write_text(json.dumps({"seed": 0, "data": data}))
    prepare_data()
    last = capsys.readouterr().out.splitlines()[-1]
    assert last.startswith("prepare_data: 20 samples: 20 kept (")
    assert last.endswith("; stopped after data.count = 20 samples, the source has more")


def test_skipped_files_are_no_samples(photos: Path, tmp_path: Path) -> None:
    """Neither of `count` nor of the share that may be in quarantine."""
    source = tmp_path / "source"
    shutil.copytree(photos, source)
    for i in range(100):
        (source / f"000{i}.gif").write_bytes(b"")
    (source / "zz.jpg").write_bytes(b"")
    (source / "zz.txt").write_text("empty")
    outcome = prepare(of_folder(source, count=25), 0, tmp_path / "data")
    assert (outcome.samples, outcome.splits.total(), outcome.skipped.total()) == (25, 24, 100)
    with pytest.raises(UserError, match="1 of 25 samples cannot be read"):
        prepare(of_folder(source, filters={"max_quarantined_share": 0.03}), 0, tmp_path / "data")


@pytest.mark.parametrize("split_by", ["image", "caption"])
def test_every_caption_of_an_image_is_a_sample(photos: Path, tmp_path: Path, split_by: str) -> None:
    source = tmp_path / "source"
    source.mkdir()
    rows = []
    for path in sorted(photos.glob("*.jpg")):
        (source / path.name).write_bytes(path.read_bytes())
        rows += [{"file_name": path.name, "caption": f"{path.stem}, number {i}"} for i in range(3)]
    rows += rows[:2]
    (source / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    outcome = prepare(of_folder(source, split_by=split_by), 0, tmp_path / "data")
    assert outcome.rejected == {"duplicate": 2}
    sides = [images_of(tmp_path / "data", split) for split in SPLITS]
    captions = [record.caption for side in sides for record in side.values()]
    assert sorted(captions) == sorted(row["caption"] for row in rows[:-2])
    assert all("." not in key for side in sides for key in side)
    by_image: dict[str, dict[str, str]] = defaultdict(dict)
    for key, record in [item for side in sides for item in side.items()]:
        image, _, ordinal = key.partition("-")
        by_image[image][ordinal] = record.caption.rpartition(" ")[2]
    assert all(numbers == {"": "0", "1": "1", "2": "2"} for numbers in by_image.values())
    if split_by == "image":
        assert not {key[:32] for key in sides[0]} & {key[:32] for key in sides[1]}


def test_the_reference_of_the_evaluation_has_each_image_once() -> None:
    def record(key: str) -> ImageRecord:
        return ImageRecord(key, np.zeros((8, 8, 3), np.uint8), key, None)

    keys = [f"{image:032x}{caption}" for image in range(7) for caption in ("", "-1", "-2")]
    stream = Stream([len(keys)], lambda _: [record(key) for key in keys], Key(0, "order"))
    for count, expected in ((5, 5), (7, 7), (100, 7)):
        images = [row.key[:32] for row in distinct(stream, count)]
        assert len(images) == len(set(images)) == expected
    single = Stream([9], lambda _: [record(str(i)) for i in range(9)], Key(0, "order"))
    assert [p.key for p in distinct(single, 4)] == [p.key for p in single.rows(range(4))]


@pytest.mark.parametrize(
    ("stored", "caption"),
    [
        (b"\xef\xbb\xbfa dog\r\n", "a dog"),
        (b"two\rlines\r", "two\nlines"),
        (b"two\r\nlines", "two\nlines"),
        ("Cafe\u0301 ".encode(), "Caf\u00e9"),
        ("\ufeff\ufeffa dog".encode(), "a dog"),
    ],
)
def test_captions_are_stored_normalised(stored: bytes, caption: str, photos: Path, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(stored)
    (tmp_path / "a.jpg").write_bytes((photos / "000.jpg").read_bytes())
    config = of_folder(tmp_path)
    (sample,) = folder.samples(config, 0)
    assert isinstance(sample, Sample)
    prepared = examine(sample, config)
    assert isinstance(prepared, Prepared)
    assert prepared.record.caption == caption


@pytest.mark.parametrize(
    "content",
    [
        b"\xef\xbb\xbfa dog\na cat\n",
        b"a dog\r\n\r\na cat",
        b"a dog\ra cat\r",
        b" a dog \n\n\t\na cat\n\n",
        b"a dog\n\xef\xbb\xbfa cat\n",
    ],
)
def test_prompts_of_a_file_are_normalised(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "prompts.txt").write_bytes(content)
    assert sorted(prompts_of(tmp_path / "prompts.txt", Key(0, "p"), range(2))) == ["a cat", "a dog"]


def test_prompts_of_two_compositions_are_one(tmp_path: Path) -> None:
    (tmp_path / "prompts.txt").write_text("Caf\u00e9\nCafe\u0301\u2028x", encoding="utf-8")
    prompts = sorted(prompts_of(tmp_path / "prompts.txt", Key(0, "p"), range(2)))
    assert prompts == ["Caf\u00e9", "Caf\u00e9\u2028x"]


@pytest.mark.parametrize(
    ("content", "message"),
    [("a dog".encode("utf-16"), "not UTF-8; save it as UTF-8"), (None, "No such file or directory")],
)
def test_prompts_that_cannot_be_read(content: bytes | None, message: str, tmp_path: Path) -> None:
    if content is not None:
        (tmp_path / "prompts.txt").write_bytes(content)
    with pytest.raises(UserError, match=rf"triplets\.prompts = .*prompts\.txt: cannot be read: {message}"):
        prompts_of(tmp_path / "prompts.txt", Key(0, "p"), range(2))


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
    stream = open_images(tmp_path / "data", "train", Key(0, "order"))
    with pytest.raises(UserError, match=r"train/00000\.tar: differs from the hash in .*index\.json"):
        stream.rows(range(stream.total))


def test_wrong_index_names_the_key(tmp_path: Path) -> None:
    (tmp_path / "index.json").write_text('{"resolution": "wide", "labels": null, "splits": {}}')
    with pytest.raises(UserError, match=r"index\.json: resolution = 'wide'"):
        read_index(tmp_path)
