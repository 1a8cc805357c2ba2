"""Folders as people have them: links, suffixes, caption files, what is skipped and how it is named."""

import io
import os
from pathlib import Path

import pytest
from PIL import Image

from fewstep.config.data import DataConfig
from fewstep.core.errors import UserError
from fewstep.sources import folder
from fewstep.sources.folder.names import Captions
from fewstep.sources.sample import Sample, Skipped, Unreadable


def png(shade: int = 1) -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", (8, 8), (shade, shade, shade)).save(stream, "png")
    return stream.getvalue()


def put(path: Path, caption: str | None = None) -> None:
    """An image and, with a caption, its `.txt`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(png())
    if caption is not None:
        path.with_suffix(".txt").write_text(caption)


def entries(path: Path) -> list[Sample | Unreadable | Skipped]:
    return list(folder.samples(DataConfig(source="folder", path=str(path), resolution=8), 0))


def captions(path: Path) -> dict[str, str | None]:
    """Name -> caption, of the samples; each name once."""
    samples = [entry for entry in entries(path) if isinstance(entry, Sample)]
    assert len({entry.name for entry in samples}) == len(samples)
    return {entry.name: entry.caption for entry in samples}


def skipped(path: Path) -> dict[str, str]:
    """Name -> reason."""
    return {entry.name: entry.reason for entry in entries(path) if isinstance(entry, Skipped)}


# Links


def link_outside(root: Path) -> None:
    put(root.parent / "disk" / "far.png", "far")
    (root / "disk").symlink_to(root.parent / "disk")


def link_to_parent(root: Path) -> None:
    (root / "sub").mkdir()
    (root / "sub" / "up").symlink_to(root)


def link_to_itself(root: Path) -> None:
    (root / "self").symlink_to(root / "self")


def two_links_to_one(root: Path) -> None:
    link_outside(root)
    (root / "again").symlink_to(root.parent / "disk")


def link_to_sibling(root: Path) -> None:
    put(root / "real" / "near.png", "near")
    (root / "alias").symlink_to("real")


def links_that_point_at_each_other(root: Path) -> None:
    put(root / "a" / "in_a.png", "in a")
    put(root / "b" / "in_b.png", "in b")
    (root / "a" / "to_b").symlink_to(root / "b")
    (root / "b" / "to_a").symlink_to(root / "a")


def linked_file(root: Path) -> None:
    put(root.parent / "disk" / "far.png", "far")
    for suffix in ("png", "txt"):
        (root / f"here.{suffix}").symlink_to(root.parent / "disk" / f"far.{suffix}")


@pytest.mark.parametrize(
    ("links", "linked"),
    [
        (link_outside, ["far"]),
        (link_to_parent, []),
        (link_to_itself, []),
        (two_links_to_one, ["far"]),
        (link_to_sibling, ["near"]),
        (links_that_point_at_each_other, ["in a", "in b"]),
        (linked_file, ["far"]),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_links_are_followed_and_each_folder_is_read_once(links, linked, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    put(tmp_path / "photos" / "own.png", "own")
    links(tmp_path / "photos")
    assert sorted(map(str, captions(tmp_path / "photos").values())) == [*linked, "own"]


def test_the_folder_itself_may_be_a_link(tmp_path: Path) -> None:
    put(tmp_path / "photos" / "sub" / "a.png", "one")
    (tmp_path / "link").symlink_to("photos")
    assert captions(tmp_path / "link") == {"sub/a.png": "one"}


def test_broken_links_are_named(tmp_path: Path) -> None:
    put(tmp_path / "a.png", "one")
    put(tmp_path / "b.png")
    for name in ("gone.jpg", "more", "b.txt", "loop.jpg"):
        (tmp_path / name).symlink_to("loop.jpg" if name == "loop.jpg" else "nowhere")
    listed = entries(tmp_path)
    assert [entry for entry in listed if not isinstance(entry, Sample)] == [
        Unreadable("b.png", "broken metadata", "its .txt: No such file or directory"),
        Unreadable("gone.jpg", "image not readable", "broken link"),
        Unreadable("loop.jpg", "image not readable", "broken link"),
        Skipped("more", "broken link"),
    ]


def test_what_is_no_regular_file_is_not_waited_for(tmp_path: Path) -> None:
    put(tmp_path / "a.png", "one")
    os.mkfifo(tmp_path / "pipe.png")
    assert entries(tmp_path)[1] == Unreadable("pipe.png", "image not readable", "no regular file")


# Suffixes


@pytest.mark.parametrize(
    "suffix", ["jpg", "jpeg", "jpe", "jfif", "jif", "png", "apng", "webp", "JPEG", "Jfif"]
)
def test_suffixes_that_are_read(suffix: str, tmp_path: Path) -> None:
    put(tmp_path / f"a.{suffix}", "one")
    assert captions(tmp_path) == {f"a.{suffix}": "one"}
    assert skipped(tmp_path) == {}


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("x.avif", "format not decoded (.avif)"),
        ("x.HEIC", "format not decoded (.heic)"),
        ("x.gif", "format not decoded (.gif)"),
        ("x.Tiff", "format not decoded (.tiff)"),
        ("x.jxl", "format not decoded (.jxl)"),
        ("x.cr2", "format not decoded (.cr2)"),
        ("._a.jpg", "hidden file"),
        (".DS_Store", "hidden file"),
        (".hidden.png", "hidden file"),
        (".trash/x.png", "hidden file"),
        ("lonely.txt", "caption without an image"),
        ("lonely.caption", "caption without an image"),
        ("a.caption", "further caption file of an image"),
        ("a.png.txt", "further caption file of an image"),
        ("Thumbs.db", "not an image"),
        ("a.json", "not an image"),
        ("notes.md", "not an image"),
        ("x.a1b2c3", "not an image"),
        ("noextension", "not an image"),
        ("png", "not an image"),
    ],
)
def test_every_other_file_is_named_with_its_reason(name: str, reason: str, tmp_path: Path) -> None:
    for place in (tmp_path / name, tmp_path / "sub" / name):
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(b"x")
    for image in (tmp_path / "a.png", tmp_path / "sub" / "a.png"):
        put(image, "one")
    reasons = skipped(tmp_path)
    assert (reasons[name], reasons[f"sub/{name}"]) == (reason, reason)
    assert captions(tmp_path) == {"a.png": "one", "sub/a.png": "one"}


def test_the_caption_of_an_image_that_is_not_decoded_goes_with_it(tmp_path: Path) -> None:
    put(tmp_path / "a.png", "one")
    put(tmp_path / "b.avif", "two")
    assert skipped(tmp_path) == {"b.avif": "format not decoded (.avif)"}


def test_unknown_suffixes_share_one_reason(tmp_path: Path) -> None:
    put(tmp_path / "a.png", "one")
    for i in range(50):
        (tmp_path / f"x.{i}").write_bytes(b"")
    assert set(skipped(tmp_path).values()) == {"not an image"}


def test_a_folder_of_nothing_but_skipped_files_is_reported_with_them(tmp_path: Path) -> None:
    for i in range(3):
        (tmp_path / f"{i}.avif").write_bytes(b"")
    (tmp_path / ".DS_Store").write_bytes(b"")
    with pytest.raises(
        UserError, match=r"4 skipped files \(1 hidden file, 3 format not decoded \(\.avif\)\)"
    ):
        entries(tmp_path)


# Caption files


@pytest.mark.parametrize(
    ("image", "files", "caption"),
    [
        ("DSC_1.JPG", {"DSC_1.TXT": "upper"}, "upper"),
        ("a.png", {"a.Txt": "mixed"}, "mixed"),
        ("a.png", {"a.TXT": "upper", "a.txt": "exact"}, "exact"),
        ("a.png", {"a.caption": "kohya"}, "kohya"),
        ("a.png", {"a.CAPTION": "kohya"}, "kohya"),
        ("a.png", {"a.caption": "second", "a.txt": "first"}, "first"),
        ("a.png", {"a.png.txt": "whole name"}, "whole name"),
        ("a.png", {"a.PNG.TXT": "whole name"}, "whole name"),
        ("a.png", {"a.png.txt": "second", "a.txt": "first"}, "first"),
        ("a.png", {"A.TXT": "other", "a.TXT": "own"}, "own"),
        ("IMG_1.JPG", {"img_1.txt": "lower"}, "lower"),
        ("a.b.png", {"a.b.txt": "dots"}, "dots"),
        ("a.b.png", {"a.txt": "not mine"}, None),
        ("caf\u00e9.png", {"cafe\u0301.txt": "decomposed"}, "decomposed"),
        ("a.png", {"ab.txt": "not mine", "b.txt": "nor this"}, None),
    ],
)
def test_caption_files(image: str, files: dict[str, str], caption: str | None, tmp_path: Path) -> None:
    put(tmp_path / "other.png", "other")
    put(tmp_path / image)
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    assert captions(tmp_path) == {image: caption, "other.png": "other"}
    assert len(skipped(tmp_path)) == len(files) - (caption is not None)


def test_a_caption_is_not_taken_from_an_image_of_another_case(tmp_path: Path) -> None:
    put(tmp_path / "a.png", "small a")
    put(tmp_path / "A.png")
    assert captions(tmp_path) == {"a.png": "small a", "A.png": None}


def test_a_caption_that_could_be_of_two_images_is_of_none() -> None:
    captions_by_image = Captions(["Ab.png", "aB.png"], ["AB.txt"])
    assert (captions_by_image.of("Ab.png"), captions_by_image.of("aB.png")) == (None, None)
    assert captions_by_image.left() == [("AB.txt", "caption without an image")]


def test_images_of_one_stem_share_a_caption(tmp_path: Path) -> None:
    for name in ("a.png", "a.jpg"):
        put(tmp_path / name, "shared")
    assert captions(tmp_path) == {"a.jpg": "shared", "a.png": "shared"}
    assert skipped(tmp_path) == {}


def test_captions_are_looked_for_in_the_same_folder(tmp_path: Path) -> None:
    put(tmp_path / "a.png", "one")
    put(tmp_path / "sub" / "a.png")
    assert captions(tmp_path) == {"a.png": "one", "sub/a.png": None}


@pytest.mark.parametrize("encoding", ["utf-16", "latin-1"])
def test_a_caption_in_another_encoding_is_named_with_the_remedy(encoding: str, tmp_path: Path) -> None:
    put(tmp_path / "a.png")
    (tmp_path / "a.TXT").write_bytes("Bär".encode(encoding))
    assert entries(tmp_path) == [
        Unreadable("a.png", "broken metadata", "its .TXT: not UTF-8; save it as UTF-8")
    ]


# The order, and what is asked for without reading


def test_samples_come_sorted_by_path_whatever_else_is_there(tmp_path: Path) -> None:
    for name in ("b.png", "a.png", "z/a.png", "m/b.png", "m/a.png"):
        put(tmp_path / name, name)
    for name in ("a.avif", "c.md", "m/a.gif"):
        (tmp_path / name).write_bytes(b"")
    assert list(captions(tmp_path)) == ["a.png", "b.png", "m/a.png", "m/b.png", "z/a.png"]


def test_count_and_inputs_without_reading(tmp_path: Path) -> None:
    for i in range(3):
        put(tmp_path / f"sub/{i}.JFIF", "one")
    for name in ("._0.jpg", ".trash/0.jpg"):
        put(tmp_path / name)
    config = DataConfig(source="folder", path=str(tmp_path), resolution=8)
    assert (folder.count(config), folder.inputs(config)) == (3, [tmp_path])
    (tmp_path / "captions.csv").write_text("file_name,caption\n")
    assert folder.count(config) is None
    gone = DataConfig(source="folder", path=str(tmp_path / "gone"), resolution=8)
    assert folder.count(gone) is None
