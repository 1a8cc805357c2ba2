"""Archives as users have them: a bad member costs its sample and no other; whatever is lost is named."""

import bz2
import gzip
import json
import lzma
import tarfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import pytest

from fewstep.config.data import KeysConfig
from fewstep.core.errors import UserError
from fewstep.sources import webdataset
from fewstep.sources.sample import (
    Sample,
    Skipped,
    Unreadable,
    demand_captions,
)
from fewstep.sources.webdataset import inputs, tar_members
from tests.archives import (
    BLOCK,
    JPG,
    JSON,
    NO_IMAGE,
    PIPE_CHUNK,
    Entry,
    config_of,
    expected,
    faults,
    good,
    info_of,
    pair,
    read,
    samples,
    skipped,
    tar,
)

NOT_READABLE = "member not readable"


@pytest.mark.parametrize(
    ("members", "fault"),
    [
        ([JPG, JSON, JPG], None),
        ([JPG, JPG, JSON], None),
        ([JPG, JSON, ("1.JSON", JSON[1])], None),
        ([JPG, JSON, info_of("1.jpg", type=tarfile.LNKTYPE, linkname="1.jpg")], None),
        (
            [JPG, JSON, ("1.jpg", b"another")],
            ("repeated member", "its .jpg comes twice, with different content"),
        ),
        (
            [JPG, ("1.JPG", b"another"), JSON],
            ("repeated member", "its .jpg comes twice, with different content"),
        ),
        (
            [JSON, ("1.json", b"{}"), JPG],
            ("repeated member", "its .json comes twice, with different content"),
        ),
        (
            [info_of("1.jpg", type=tarfile.LNKTYPE, linkname="0.jpg"), JSON],
            (NOT_READABLE, "its .jpg is a hard link"),
        ),
        (
            [JPG, info_of("1.json", type=tarfile.SYMTYPE, linkname="0.json")],
            (NOT_READABLE, "its .json is a symbolic link"),
        ),
        ([info_of("1.jpg", type=tarfile.FIFOTYPE), JSON], (NOT_READABLE, "its .jpg is a FIFO")),
        ([info_of("1.jpg", type=tarfile.CHRTYPE), JSON], (NOT_READABLE, "its .jpg is a device")),
        ([info_of("1.jpg", type=tarfile.BLKTYPE), JSON], (NOT_READABLE, "its .jpg is a device")),
        ([info_of("1.jpg", type=tarfile.DIRTYPE), JSON], ("no image", NO_IMAGE)),
        ([JSON], ("no image", NO_IMAGE)),
        ([JPG], ("no caption", "no .json beside its .jpg")),
    ],
)
def test_bad_member_costs_its_sample_and_no_other(
    tmp_path: Path, members: list[Any], fault: tuple[str, str] | None
) -> None:
    tar(tmp_path / "a.tar", [*good("0"), *members, *good("2", "3")])
    entries = read(tmp_path / "a.tar")
    keys = ["0", "2", "3"] if fault else ["0", "1", "2", "3"]
    assert samples(entries) == expected("a.tar", *keys)
    assert faults(entries) == ([Unreadable("a.tar/1", *fault)] if fault else [])
    assert not skipped(entries)


@pytest.mark.parametrize("size", [BLOCK + 1, 3 * BLOCK, 5 * BLOCK + 7, 2 * PIPE_CHUNK, 1 << 40])
@pytest.mark.parametrize("key", ["0", "1"])
def test_size_that_reaches_over_other_members_costs_one_sample(tmp_path: Path, size: int, key: str) -> None:
    members = [
        info_of(name, content, size=size) if name == f"{key}.jpg" else (name, content)
        for name, content in good("0", "1", "2", "3")
    ]
    entries = read(tar(tmp_path / "a.tar", members))
    assert samples(entries) == expected("a.tar", *(k for k in "0123" if k != key))
    assert faults(entries) == [
        Unreadable(f"a.tar/{key}", "member not readable", "its .jpg has a wrong size in the tar")
    ]


def test_size_that_is_too_small_costs_one_sample(tmp_path: Path) -> None:
    image = bytes(range(1, 251)) * 10
    members = [*good("0"), info_of("1.jpg", image, size=700), pair("1")[1], *good("2", "3")]
    entries = read(tar(tmp_path / "a.tar", members))
    assert [entry.image for entry in samples(entries) if entry.name == "a.tar/1"] == [image[:700]], (
        "to be decoded"
    )
    assert [entry for entry in samples(entries) if entry.name != "a.tar/1"] == expected(
        "a.tar", "0", "2", "3"
    )
    assert faults(entries) == [
        Unreadable("a.tar", "broken archive", "it holds a damaged header; 4 samples found")
    ]


def test_size_of_a_member_that_is_not_read_may_lie_too(tmp_path: Path) -> None:
    members = [*good("0"), info_of("0.txt", b"zero", size=1 << 33), *good("1")]
    entries = read(tar(tmp_path / "a.tar", members))
    assert samples(entries) == expected("a.tar", "0", "1")
    assert not faults(entries)


@pytest.mark.parametrize("header", range(4, 12, 2))
def test_damaged_header_costs_its_sample(tmp_path: Path, header: int) -> None:
    path = tar(tmp_path / "a.tar", good(*"012345"))
    content = bytearray(path.read_bytes())
    content[header * BLOCK + 10] ^= 1  # each member has one block of header, one of content
    path.write_bytes(content)
    entries = read(path)
    key = str(header // 4)
    assert samples(entries) == expected("a.tar", *(k for k in "012345" if k != key))
    assert [(f.name, f.reason) for f in faults(entries)] == [
        (f"a.tar/{key}", "no caption" if header % 4 else "no image"),
        ("a.tar", "broken archive"),
    ]


@pytest.mark.parametrize("format", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_long_name_of_a_damaged_member_goes_with_it(tmp_path: Path, format: Literal[1, 2]) -> None:
    long = "x" * 200
    path = tar(tmp_path / "a.tar", [*good("0"), *pair(long)[:1], *good("1")], format)
    content = bytearray(path.read_bytes())
    content[content.index(b"x" * 90, content.index(long.encode()) + len(long)) + 5] ^= 1
    path.write_bytes(content)
    assert samples(read(path)) == expected("a.tar", "0", "1")


def test_image_that_holds_a_header_somewhere_is_used(tmp_path: Path) -> None:
    image = b"x" * 100 + info_of("9.jpg")[0].tobuf() + b"x" * 1000
    (entry,) = read(tar(tmp_path / "a.tar", [("1.jpg", image), JSON]))
    assert isinstance(entry, Sample)
    assert entry.image == image


def test_member_that_is_too_large(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tar_members, "LARGEST", 1 << 20)
    large = ("1.jpg", bytes((1 << 20) + 1))
    entries = read(tar(tmp_path / "a.tar", [*good("0"), large, JSON, ("2.bin", large[1]), *good("3")]))
    assert samples(entries) == expected("a.tar", "0", "3")
    assert faults(entries) == [Unreadable("a.tar/1", NOT_READABLE, "its .jpg is larger than 1 MiB")]


COMPRESSIONS = {"gz": gzip.compress, "bz2": bz2.compress, "xz": lzma.compress}


@pytest.mark.parametrize("compress", COMPRESSIONS.values(), ids=COMPRESSIONS)
def test_compressed_archive(tmp_path: Path, compress: Callable[[bytes], bytes]) -> None:
    plain = tar(tmp_path / "a.tar", good(*"0123")).read_bytes()
    (tmp_path / "b.tar").write_bytes(compress(plain[:1000]) + compress(plain[1000:]) + bytes(100))
    assert read(tmp_path / "b.tar") == expected("b.tar", *"0123"), "in two parts, with zeros behind"


def test_compressed_archive_that_is_cut_or_damaged_keeps_what_came_before(tmp_path: Path) -> None:
    images = [(f"{i:03d}.jpg", bytes((i * j * j) % 251 for j in range(3000))) for i in range(1, 60)]
    members = [
        m for name, content in images for m in ((name, content), (name[:3] + ".json", b'{"caption": "x"}'))
    ]
    whole = gzip.compress(tar(tmp_path / "a.tar", members).read_bytes())
    damaged = whole[: len(whole) // 2] + bytes(range(200)) + whole[len(whole) // 2 + 200 :]
    for content, problem in (
        (whole[: len(whole) // 2], "its compressed data ends early"),
        (damaged, "its compressed data is damaged"),
    ):
        (tmp_path / "b.tar.gz").write_bytes(content)
        entries = read(tmp_path / "b.tar.gz")
        assert 15 < len(samples(entries)) < 59
        assert faults(entries)[-1].name == "b.tar.gz"
        assert faults(entries)[-1].detail.partition(";")[0] == problem


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"", "it is empty"),
        (b"version https://git-lfs.github.com/spec/v1\n" * 3, "it is no tar"),
        (b"<html>" + b"not found " * 1000, "it is no tar"),
        (b"PAR1" + bytes(5000), "it is no tar"),
        (b"PK\x03\x04" + bytes(5000), "zip is not read; make it a tar, plain or gzip"),
        (b"\x28\xb5\x2f\xfd" + bytes(5000), "zstandard is not read; make it a tar, plain or gzip"),
    ],
)
def test_what_is_no_tar_is_named(tmp_path: Path, content: bytes, problem: str) -> None:
    (tmp_path / "0.tar").write_bytes(content)
    tar(tmp_path / "1.tar", good("1"))
    assert read(tmp_path / "{0..1}.tar") == [
        Unreadable("0.tar", "broken archive", f"{problem}; 0 samples found"),
        *expected("1.tar", "1"),
    ]


def test_archives_one_behind_the_other(tmp_path: Path) -> None:
    content = (
        tar(tmp_path / "0.tar", good("0")).read_bytes() + tar(tmp_path / "1.tar", good("1")).read_bytes()
    )
    (tmp_path / "both.tar").write_bytes(content)
    assert read(tmp_path / "both.tar") == expected("both.tar", "0", "1")


def test_pipe_that_fails_keeps_what_came_before(tmp_path: Path) -> None:
    path = tar(tmp_path / "a.tar", good(*"012"))
    entries = read(f"pipe:head -c 5000 {path}; exit 3", caption="caption")
    assert [s.caption for s in samples(entries)] == ["caption of 0", "caption of 1"]
    assert faults(entries)[-1].reason == "broken archive"
    assert faults(entries)[-1].detail == "its command or download failed; 3 samples found"


def test_reading_may_stop_early(tmp_path: Path) -> None:
    """As `data.count` does; that the command fails of it is nobody's fault."""
    path = tar(tmp_path / "a.tar", good(*map(str, range(500))))
    entries = webdataset.archive(f"pipe:cat {path}; exit 3", "a.tar", KeysConfig())
    assert isinstance(next(entries), Sample)
    entries.close()  # type: ignore[attr-defined]


def test_folder_and_pattern_of_archives(tmp_path: Path) -> None:
    """As img2dataset leaves them, with other files beside."""
    for i in (10, 2, 1):
        tar(tmp_path / f"{i:05d}.tar", good(str(i)))
        (tmp_path / f"{i:05d}.parquet").write_bytes(b"PAR1")
        (tmp_path / f"{i:05d}_stats.json").write_bytes(b"{}")
    (tmp_path / "._00001.tar").write_bytes(b"x")
    (tmp_path / "00003.tar.gz").write_bytes(gzip.compress((tmp_path / "00001.tar").read_bytes()))
    names = ["00001.tar", "00002.tar", "00003.tar.gz", "00010.tar"]
    assert [s.name for s in read(tmp_path)] == [
        f"{name}/{i}" for name, i in zip(names, ["1", "2", "1", "10"], strict=True)
    ]
    assert read(tmp_path) == read(tmp_path / "*")
    assert [s.name for s in read(tmp_path / "*.tar")] == ["00001.tar/1", "00002.tar/2", "00010.tar/10"]
    assert inputs(config_of(tmp_path)) == [tmp_path / name for name in names]
    assert inputs(config_of(tmp_path / "0000{1..2}.tar")) == [tmp_path / name for name in names[:2]]
    assert inputs(config_of("http://host/{0..9}.tar")) == []


@pytest.mark.parametrize("path", ["", "*.tar", "{0..1.tar", "gone/*.tar", "gone.tar"])
def test_path_that_leads_to_no_archive(tmp_path: Path, path: str) -> None:
    (tmp_path / "0.parquet").write_bytes(b"")
    with pytest.raises(
        UserError, match=r"data\.path = .*expected tars: their folder, or e\.g\. `data/"
    ) as refused:
        read(f"{tmp_path}/{path}")
    assert "\n" not in str(refused.value)
    assert inputs(config_of(f"{tmp_path}/{path}")), "watched, though it is not there"


def test_names_hold_no_place_of_this_machine(tmp_path: Path) -> None:
    for folder in "ab":
        (tmp_path / folder).mkdir()
        tar(tmp_path / folder / "0.tar", good("0"))
    patterns = (f"{tmp_path}/{{a,b}}/0.tar", f"{tmp_path}/a/0.tar::{tmp_path}/b/0.tar", f"{tmp_path}/?/0.tar")
    for pattern in patterns:
        assert [entry.name for entry in read(pattern)] == ["a/0.tar/0", "b/0.tar/0"]


def test_img2dataset(tmp_path: Path) -> None:
    members = []
    for i in range(100):
        record = {"caption": None if i == 6 else f"caption {i}", "key": f"{i:09d}", "status": "success"}
        members += [] if i == 5 else [(f"{i:09d}.jpg", b"x")]
        members += [(f"{i:09d}.txt", b"text"), (f"{i:09d}.json", json.dumps(record).encode())]
    entries = read(tar(tmp_path / "0.tar", members))
    assert len([s for s in samples(entries) if s.caption is not None]) == 98
    assert [s.name for s in samples(entries) if s.caption is None] == ["0.tar/000000006"]
    assert faults(entries) == [Unreadable("0.tar/000000005", "no image", NO_IMAGE)]
    assert Counter(entry.reason for entry in skipped(entries)) == {"other member": 100}


def test_captions_as_text_alone_are_refused(tmp_path: Path) -> None:
    members = [member for i in range(40) for member in ((f"{i}.jpg", b"x"), (f"{i}.txt", b"text"))]
    with pytest.raises(
        UserError, match=r"none of its 40 samples has a caption; expected members `key\.jpg` and `key"
    ):
        read(tar(tmp_path / "a.tar", members))


def test_members_that_are_all_skipped_are_counted(tmp_path: Path) -> None:
    with pytest.raises(
        UserError, match=r"nothing but 2 skipped files \(1 hidden file, 1 other member\) found there"
    ):
        read(tar(tmp_path / "a.tar", [("._1.jpg", b"x"), ("README", b"x")]))


def test_skipped_entries_pass_and_count_as_nothing() -> None:
    entries: list[Entry] = [Skipped("a", "hidden file"), Sample("b", b"", "caption")]
    assert list(demand_captions(entries, "here", "x")) == entries
