"""Folders and archives: what they yield, what they quarantine, what they refuse."""

import io
import json
import shutil
import tarfile
from collections.abc import Mapping
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
from PIL import Image

from fewstep.config.data import DataConfig, KeysConfig
from fewstep.core.errors import UserError
from fewstep.sources import folder, webdataset
from fewstep.sources.sample import Sample, Skipped, Unreadable

HEADER = 512


def png(shade: int) -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", (8, 8), (shade, shade, shade)).save(stream, "png")
    return stream.getvalue()


def read_folder(path: Path) -> list[Sample | Unreadable | Skipped]:
    return list(folder.samples(DataConfig(source="folder", path=str(path), resolution=8), 0))


def read_tars(pattern: str, **keys: Any) -> list[Sample | Unreadable | Skipped]:
    config = DataConfig(source="webdataset", path=pattern, resolution=8, keys=KeysConfig(**keys))
    return list(webdataset.samples(config, 0))


def write_tar(path: Path, members: Mapping[str, bytes]) -> None:
    with tarfile.open(path, "w") as archive:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))


def members(count: int, first: int = 0) -> dict[str, bytes]:
    pairs = {}
    for i in range(first, first + count):
        pairs[f"{i:03d}.json"] = json.dumps({"caption": f"shade {i}", "aesthetic_score": i}).encode()
        pairs[f"{i:03d}.png"] = png(i)
    return pairs


# A folder


def test_text_files_beside_images_at_any_depth(tmp_path: Path) -> None:
    (tmp_path / "b" / "c").mkdir(parents=True)
    for name in ("b/c/2.PNG", "a.png", "b/1.png", ".hidden.png", "notes.md"):
        (tmp_path / name).write_bytes(png(1))
    (tmp_path / "a.txt").write_text("\ufeffein Bär\n", encoding="utf-8")
    (tmp_path / "b" / "1.txt").write_text("one")
    entries = read_folder(tmp_path)
    assert [(s.name, s.caption) for s in entries if isinstance(s, Sample)] == [
        ("a.png", "ein Bär\n"),
        ("b/1.png", "one"),
        ("b/c/2.PNG", None),
    ]
    assert [entry for entry in entries if isinstance(entry, Skipped)] == [
        Skipped(".hidden.png", "hidden file"),
        Skipped("notes.md", "not an image"),
    ]


def test_caption_that_is_no_utf8_is_quarantined(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(png(1))
    (tmp_path / "a.txt").write_bytes("Bär".encode("latin-1"))
    assert read_folder(tmp_path) == [
        Unreadable("a.png", "broken metadata", "its .txt: not UTF-8; save it as UTF-8")
    ]


def test_json_lines(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(png(1))
    rows = [
        '{"file_name": "a.png", "caption": "one", "aesthetic_score": 5}',
        '{"file_name": "a.png", "text": "two"}',
        "",
        '{"file_name": "gone.png", "caption": "three"}',
        '{"file_name": "a.png", "caption": ["four"]}',
        '{"file_name": "a.png", "caption": "five", "aesthetic_score": NaN}',
        '{"file_name": "a.png", "caption": "half a pair \\ud800"}',
        '{"caption": "six"}',
        "[1]",
        '{"file_name": ',
    ]
    (tmp_path / "metadata.jsonl").write_text("\n".join(rows))
    entries = read_folder(tmp_path)
    assert entries[:2] == [Sample("a.png", png(1), "one", 5.0), Sample("a.png", png(1), "two")]
    assert [str(entry).partition(" (")[0] for entry in entries[2:]] == [
        "gone.png: image not readable",
        "a.png: broken metadata",
        "a.png: broken metadata",
        "a.png: broken metadata",
        "metadata.jsonl line 8: broken metadata",
        "metadata.jsonl line 9: broken metadata",
        "metadata.jsonl line 10: broken metadata",
    ]
    assert "`aesthetic_score` is no number" in str(entries[4])


def test_csv(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(png(1))
    table = 'file_name,caption,aesthetic_score\na.png,"one, two",5.5\na.png,three,\na.png,four,high\n'
    (tmp_path / "captions.csv").write_text(table)
    one, three, four = read_folder(tmp_path)
    assert one == Sample("a.png", png(1), "one, two", 5.5)
    assert three == Sample("a.png", png(1), "three", None)
    assert isinstance(four, Unreadable)


def test_csv_without_file_names_is_refused(tmp_path: Path) -> None:
    (tmp_path / "captions.csv").write_text("image,caption\na.png,one\n")
    with pytest.raises(UserError, match=r"captions\.csv: no column `file_name`; .*'image', 'caption'"):
        read_folder(tmp_path)


def test_folder_that_does_not_exist(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"data\.path = .*nowhere: no such folder; expected images"):
        read_folder(tmp_path / "nowhere")


def test_empty_folder(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"data\.path = .*: nothing found there; expected images \(\.jpg"):
        read_folder(tmp_path)


def test_folder_without_captions(tmp_path: Path) -> None:
    for i in range(3):
        (tmp_path / f"{i}.png").write_bytes(png(i))
    with pytest.raises(UserError, match=r"none of its 3 samples has a caption; expected .*`\.txt`"):
        read_folder(tmp_path)


# Archives


def test_brace_pattern_reads_archives_in_order(tmp_path: Path) -> None:
    for i in range(3):
        write_tar(tmp_path / f"{i}.tar", members(2, first=2 * i))
    samples = read_tars(str(tmp_path / "{0..2}.tar"))
    assert samples == [Sample(f"{i // 2}.tar/{i:03d}", png(i), f"shade {i}", float(i)) for i in range(6)]


def test_configured_keys(tmp_path: Path) -> None:
    write_tar(tmp_path / "a.tar", {"0.image": png(0), "0.meta": b'{"alt": "zero", "score": 1}'})
    keys = {"image": ["image"], "metadata": "meta", "caption": "alt", "aesthetic_score": "score"}
    assert read_tars(str(tmp_path / "a.tar"), **keys) == [Sample("a.tar/0", png(0), "zero", 1.0)]


def test_file_url(tmp_path: Path) -> None:
    write_tar(tmp_path / "a.tar", members(2))
    assert len(read_tars(f"file:{tmp_path / 'a.tar'}")) == 2


@pytest.mark.skipif(shutil.which("curl") is None, reason="webdataset reads URLs with curl")
def test_url(tmp_path: Path) -> None:
    write_tar(tmp_path / "0.tar", members(2))
    handler = partial(SimpleHTTPRequestHandler, directory=str(tmp_path))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_port}/{{0..1}}.tar"
        *entries, gone = read_tars(url)
        server.shutdown()
    assert [entry.name for entry in entries] == ["0.tar/000", "0.tar/001"]
    assert isinstance(gone, Unreadable)
    assert (gone.name, gone.reason) == ("1.tar", "broken archive")


def test_incomplete_samples_are_named(tmp_path: Path) -> None:
    odd = {
        "a.json": b"{}",
        "b.png": png(1),
        "c.png": png(2),
        "c.json": b"{",
        "d.png": png(3),
        "d.json": b"[]",
    }
    write_tar(tmp_path / "a.tar", {**odd, **members(1)})
    c, d, whole, a, b = read_tars(str(tmp_path / "a.tar"))
    assert isinstance(c, Unreadable)
    assert d == Unreadable("a.tar/d", "broken metadata", ".json: no JSON object")
    assert isinstance(whole, Sample)
    assert a == Unreadable("a.tar/a", "no image", "none of jpg, jpeg, png, webp")
    assert b == Unreadable("a.tar/b", "no caption", "no .json beside its .png")


def test_wherever_an_archive_is_cut_what_came_before_is_kept_and_the_cut_is_reported(tmp_path: Path) -> None:
    """Also inside a header, which tarfile takes for a regular end; and the next archive is not touched."""
    write_tar(tmp_path / "whole.tar", members(4))
    write_tar(tmp_path / "next.tar", members(1, first=3))
    whole = (tmp_path / "whole.tar").read_bytes()
    with tarfile.open(tmp_path / "whole.tar") as archive:
        ends = {m.name: m.offset_data + m.size for m in archive if m.name.endswith("png")}
    for cut in range(HEADER // 2, max(ends.values()), 173):
        (tmp_path / "cut.tar").write_bytes(whole[:cut])
        entries = read_tars(str(tmp_path / "{cut,next}.tar"))
        complete = [f"cut.tar/{name.removesuffix('.png')}" for name, end in ends.items() if end <= cut]
        assert [s.name for s in entries if isinstance(s, Sample)] == [*complete, "next.tar/003"]
        broken = [e for e in entries if isinstance(e, Unreadable) and e.reason == "broken archive"]
        assert [e.name for e in broken] == ["cut.tar"], cut
        assert str(tmp_path) not in str(broken)


def test_damaged_header_costs_one_sample(tmp_path: Path) -> None:
    write_tar(tmp_path / "a.tar", members(40))
    content = bytearray((tmp_path / "a.tar").read_bytes())
    content[4096 : 4096 + HEADER] = b"x" * HEADER
    (tmp_path / "a.tar").write_bytes(content)
    *kept, half, archive = read_tars(str(tmp_path / "a.tar"))
    assert [s.name for s in kept if isinstance(s, Sample)] == [f"a.tar/{i:03d}" for i in range(40) if i != 2]
    assert half == Unreadable("a.tar/002", "no caption", "no .json beside its .png")
    assert archive == Unreadable("a.tar", "broken archive", "it holds a damaged header; 40 samples found")


def test_archive_that_does_not_exist(tmp_path: Path) -> None:
    write_tar(tmp_path / "0.tar", members(1))
    with pytest.raises(UserError, match=r"data\.path = .*: there is no file .*/1\.tar"):
        read_tars(str(tmp_path / "{0..1}.tar"))


def test_archives_without_captions(tmp_path: Path) -> None:
    write_tar(tmp_path / "0.tar", {"0.png": png(0), "0.json": b'{"text": "zero"}'})
    with pytest.raises(UserError, match=r"none of its 1 samples has a caption; .*`caption`.*data\.keys"):
        read_tars(str(tmp_path / "0.tar"))


def test_empty_archive(tmp_path: Path) -> None:
    write_tar(tmp_path / "0.tar", {})
    with pytest.raises(UserError, match="nothing found there"):
        read_tars(str(tmp_path / "0.tar"))
