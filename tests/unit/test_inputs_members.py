"""Which members of an archive make one sample: names, dots, extra members, members that lie apart."""

import itertools
import tarfile
import tracemalloc
from collections import Counter
from pathlib import Path
from typing import Literal

import pytest

from fewstep.config.data import KeysConfig
from fewstep.core.errors import UserError
from fewstep.sources import webdataset
from fewstep.sources.sample import (
    Sample,
    Skipped,
    Unreadable,
)
from tests.archives import JPG, JSON, expected, faults, good, info_of, pair, read, samples, skipped, tar


@pytest.mark.parametrize(
    "key",
    [
        "folder/1",
        "a b",
        "émoji 🦊",
        "new\nline",
        "caf\udce9",
        "x" * 300,
        "d/" * 120 + "1",
        "%20",
        "C:1",
        "1..2",
    ],
)
@pytest.mark.parametrize("format", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
@pytest.mark.parametrize("suffixes", [("jpg", "json"), ("JPG", "JSON"), ("Jpeg", "json")])
def test_names_of_every_kind(
    tmp_path: Path, key: str, format: Literal[1, 2], suffixes: tuple[str, str]
) -> None:
    members = [*good("0"), *pair(key, *suffixes), *good("2")]
    assert read(tar(tmp_path / "a.tar", members, format)) == expected("a.tar", "0", key, "2")


@pytest.mark.parametrize("name", ["./1", "/1", "//1", "././1"])
def test_prefixes_are_no_part_of_a_key(tmp_path: Path, name: str) -> None:
    members = [(f"{name}.jpg", JPG[1]), ("1.json", JSON[1])]
    assert read(tar(tmp_path / "a.tar", members)) == expected("a.tar", "1")


def test_same_name_in_two_folders(tmp_path: Path) -> None:
    members = [
        info_of("a/", type=tarfile.DIRTYPE),
        *good("a/1"),
        info_of("b", type=tarfile.DIRTYPE),
        *good("b/1"),
    ]
    assert read(tar(tmp_path / "x.tar", members)) == expected("x.tar", "a/1", "b/1")


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("README", "other member"),
        ("", "other member"),
        ("1.txt", "other member"),
        ("1.", "other member"),
        ("nested.tar", "other member"),
        ("._1.jpg", "hidden file"),
        ("./._1.json", "hidden file"),
        ("__MACOSX/._1.jpg", "hidden file"),
        ("__MACOSX/1.jpg", "hidden file"),
        (".DS_Store", "hidden file"),
        (".jpg", "hidden file"),
    ],
)
def test_member_that_is_no_sample_is_counted_and_parts_no_pair(
    tmp_path: Path, name: str, reason: str
) -> None:
    nested = tar(tmp_path / "nested.tar", good("8", "9")).read_bytes()
    entries = read(tar(tmp_path / "a.tar", [*good("0"), JPG, (name, nested), JSON, *good("2")]))
    assert samples(entries) == expected("a.tar", "0", "1", "2")
    assert [entry for entry in entries if not isinstance(entry, Sample)] == [Skipped(f"a.tar/{name}", reason)]


@pytest.mark.parametrize("key", ["cam1.shot{}", "{}.v2", "a.b.c.{}", "2024.01.{}.final", "dir.d/{}.x"])
def test_dots_in_keys(tmp_path: Path, key: str) -> None:
    keys = [key.format(i) for i in range(1100, 1200)]
    assert read(tar(tmp_path / "a.tar", good("0", *keys, "z"))) == expected("a.tar", "0", *keys, "z")


def test_sample_whose_key_extends_another(tmp_path: Path) -> None:
    entries = read(tar(tmp_path / "a.tar", good("img", "img.v2", "img.v2.b", "img.v3", "z")))
    assert sorted(samples(entries), key=lambda s: s.name) == expected(
        "a.tar", "img", "img.v2", "img.v2.b", "img.v3", "z"
    )
    assert len(entries) == 5


@pytest.mark.parametrize("order", list(itertools.permutations(range(4))))
@pytest.mark.parametrize("last", [[], ["2"]])
def test_extra_members_of_a_sample_are_counted(
    tmp_path: Path, order: tuple[int, ...], last: list[str]
) -> None:
    """In whatever order the four members come."""
    extra = [("1.seg.png", b"segments"), ("1.depth.npy", b"depth")]
    members = [[*pair("1"), *extra][i] for i in order]
    entries = read(tar(tmp_path / "a.tar", [*good("0"), *members, *good(*last)]))
    assert samples(entries) == expected("a.tar", "0", "1", *last)
    assert not faults(entries)
    assert Counter(skipped(entries)) == {
        Skipped("a.tar/1.seg.png", "other member"): 1,
        Skipped("a.tar/1.depth.npy", "other member"): 1,
    }


def test_extra_members_of_a_broken_sample_are_no_fault_of_their_own(tmp_path: Path) -> None:
    members = [
        JPG,
        ("1.jpg", b"other"),
        JSON,
        ("1.seg.png", b""),
        ("3.jpg", b""),
        ("3.seg.png", b""),
        *good("4"),
    ]
    entries = read(tar(tmp_path / "a.tar", members))
    assert [(f.name, f.reason) for f in faults(entries)] == [
        ("a.tar/1", "repeated member"),
        ("a.tar/3", "no caption"),
    ]
    assert skipped(entries) == [Skipped(f"a.tar/{i}.seg.png", "other member") for i in "13"]


@pytest.mark.parametrize("image", ["seg.png", ".seg.png", "SEG.PNG"])
def test_suffix_with_dots_can_be_configured(tmp_path: Path, image: str) -> None:
    members = [("1.jpg", b"x"), *pair("1", "seg.png", "meta.json"), ("1.json", b"{}")]
    entries = read(tar(tmp_path / "a.tar", members), image=[image], metadata="meta.json")
    assert samples(entries) == expected("a.tar", "1")
    assert skipped(entries) == [Skipped(f"a.tar/1.{suffix}", "other member") for suffix in ("jpg", "json")]


def test_longest_configured_suffix_decides(tmp_path: Path) -> None:
    members = [("1.png", b"x"), *pair("1", "seg.png")]
    assert read(tar(tmp_path / "a.tar", members), image=["seg.png", "png"]) == expected("a.tar", "1")


def test_first_configured_image_is_taken(tmp_path: Path) -> None:
    members = [("1.webp", b"webp"), ("1.png", b"png"), JPG, JSON]
    assert read(tar(tmp_path / "a.tar", members)) == expected("a.tar", "1")


def test_archive_sorted_by_suffix_is_refused_for_what_it_is(tmp_path: Path) -> None:
    with pytest.raises(UserError) as refused:
        read(tar(tmp_path / "a.tar", [pair(key)[part] for part in (0, 1) for key in "01234"]))
    assert str(refused.value) == (
        f"data.path = {tmp_path / 'a.tar'}: none of its 5 samples can be read, e.g. a.tar/0: "
        "members not adjacent (its .jpg and .json are not beside each other in the tar; write them so, "
        "e.g. `tar --sort=name`)"
    )


@pytest.mark.parametrize(("one", "two"), [("1", "2"), ("cam.1", "cam.2")])
def test_interleaved_pairs_are_named(tmp_path: Path, one: str, two: str) -> None:
    (jpg1, json1), (jpg2, json2) = pair(one), pair(two)
    entries = read(tar(tmp_path / "a.tar", [*good("0"), json1, jpg2, jpg1, json2, *good("3")]))
    assert samples(entries) == expected("a.tar", "0", "3")
    assert [(f.name, f.reason) for f in faults(entries)] == [
        (f"a.tar/{key}", "members not adjacent") for key in (one, two)
    ]
    assert "its .jpg and .json are not beside each other" in faults(entries)[1].detail


def test_extra_members_of_samples_that_are_not_adjacent(tmp_path: Path) -> None:
    (jpg1, json1), (jpg2, json2) = pair("1"), pair("2")
    segments = [("1.seg.png", b""), ("2.seg.png", b"")]
    entries = read(tar(tmp_path / "a.tar", [*good("0"), jpg1, jpg2, *segments, json1, json2]))
    assert [f.name for f in faults(entries)] == ["a.tar/1", "a.tar/2"]
    assert skipped(entries) == [Skipped(f"a.tar/{name}", "other member") for name, _ in segments]


@pytest.mark.parametrize("adjacent", [True, False])
def test_memory_holds_one_sample(tmp_path: Path, adjacent: bool) -> None:
    size, count = 1 << 20, 40
    images = [(f"cam.{i:02d}.jpg", bytes(size)) for i in range(count)]
    texts = [(f"cam.{i:02d}.json", b'{"caption": "x"}') for i in range(count)]
    pairs = [member for both in zip(images, texts, strict=True) for member in both]
    path = tar(tmp_path / "a.tar", pairs if adjacent else images + texts)
    reasons: Counter[str] = Counter()
    tracemalloc.start()
    for entry in webdataset.archive(str(path), "a.tar", KeysConfig()):
        reasons[entry.reason if isinstance(entry, Unreadable) else "sample"] += 1
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert reasons == {"sample" if adjacent else "members not adjacent": count}
    assert peak < 6 * size


def test_names_of_one_archive_do_not_meet_those_of_another(tmp_path: Path) -> None:
    tar(tmp_path / "0.tar", [*good("0"), JPG])
    tar(tmp_path / "1.tar", [JSON, *good("2")])
    assert [(f.name, f.reason) for f in faults(read(tmp_path / "{0,1}.tar"))] == [
        ("0.tar/1", "no caption"),
        ("1.tar/1", "no image"),
    ]
