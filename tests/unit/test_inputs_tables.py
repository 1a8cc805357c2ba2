"""Tables of a folder as people write them: each bad row costs itself, a table of another kind one line."""

import codecs
import json
from collections.abc import Sequence
from pathlib import Path

import pytest

from fewstep.config.data import DataConfig
from fewstep.core.errors import UserError
from fewstep.sources import folder
from fewstep.sources.sample import Sample, Skipped, Unreadable

Entries = list[Sample | Unreadable | Skipped]


def entries(path: Path) -> Entries:
    return list(folder.samples(DataConfig(source="folder", path=str(path), resolution=8), 0))


def captions(entries: Entries) -> list[tuple[str, str | None]]:
    return [(entry.name, entry.caption) for entry in entries if isinstance(entry, Sample)]


def quarantined(entries: Entries) -> list[tuple[str, str]]:
    return [(entry.name, entry.detail) for entry in entries if isinstance(entry, Unreadable)]


def skipped(entries: Entries) -> dict[str, str]:
    return {entry.name: entry.reason for entry in entries if isinstance(entry, Skipped)}


def folder_with(path: Path, table: str, content: str | bytes, images: Sequence[str] = "1234567") -> Entries:
    """What comes of a folder of images `1.jpg ...` and this table."""
    for name in images:
        (path / f"{name}.jpg").parent.mkdir(exist_ok=True)
        (path / f"{name}.jpg").write_bytes(name.encode())
    (path / table).write_bytes(content.encode() if isinstance(content, str) else content)
    return entries(path)


# Rows of captions.csv


COMMA = "a caption with a comma needs quotes"
OPEN = "a quote is opened and not closed"


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ("2.jpg,a dog, a cat", f"3 fields where the first line names 2; {COMMA}"),
        ("2.jpg,a dog, a cat, a bird", f"4 fields where the first line names 2; {COMMA}"),
        ("2.jpg,a dog,", f"3 fields where the first line names 2; {COMMA}"),
        ("2.jpg", "1 of the 2 fields that the first line names"),
        ('2.jpg,"a dog', OPEN),
        ('2.jpg,"a dog""', OPEN),
        ('"2.jpg,a dog', OPEN),
        ('2.jpg,"a" dog', "expected after"),
        ('2.jpg,"a "big" dog"', "expected after"),
        ("2.jpg,a\0dog", "NUL"),
        (b"2.jpg,B\xe4r", "not UTF-8; save it as UTF-8"),
        ("2.jpg," + "x" * 200_000, "field larger than field limit"),
    ],
)
@pytest.mark.parametrize("after", ["3.jpg,a cat", '3.jpg,"a cat, asleep"', '3.jpg,a 19"'])
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_a_row_that_does_not_fit_costs_that_row(
    bad: str | bytes, message: str, after: str, end: str, tmp_path: Path
) -> None:
    bad = bad.encode() if isinstance(bad, str) else bad
    lines = [b"file_name,caption", b"1.jpg,a horse", bad, after.encode(), b"4.jpg,a cow"]
    entries = folder_with(tmp_path, "captions.csv", end.encode().join(lines), "1234")
    third = {"3.jpg,a cat": "a cat", '3.jpg,"a cat, asleep"': "a cat, asleep", '3.jpg,a 19"': 'a 19"'}[after]
    assert captions(entries) == [("1.jpg", "a horse"), ("3.jpg", third), ("4.jpg", "a cow")]
    ((name, detail),) = quarantined(entries)
    assert name == "captions.csv line 3"
    assert message in detail
    assert "2.jpg" not in skipped(entries), "the table lists it, however badly"


def test_the_last_row_may_be_the_bad_one(tmp_path: Path) -> None:
    entries = folder_with(tmp_path, "captions.csv", 'file_name,caption\n1.jpg,one\n2.jpg,"two', "12")
    assert captions(entries) == [("1.jpg", "one")]
    assert quarantined(entries)[0][0] == "captions.csv line 3"


def test_several_bad_rows_among_good_ones_are_numbered_as_an_editor_does(tmp_path: Path) -> None:
    table = (
        'file_name,caption\n\n1.jpg,a, b\n2.jpg,"two\nlines"\n3.jpg,"open\n4.jpg,four\n5.jpg,"x\n6.jpg,six\n'
    )
    entries = folder_with(tmp_path, "captions.csv", table, "123456")
    assert captions(entries) == [("2.jpg", "two\nlines"), ("4.jpg", "four"), ("6.jpg", "six")]
    assert [name for name, _ in quarantined(entries)] == [f"captions.csv line {n}" for n in (3, 6, 8)]


@pytest.mark.parametrize(
    ("row", "caption"),
    [
        ('1.jpg,"a dog, a cat"', "a dog, a cat"),
        ('1.jpg, "a dog, a cat"', "a dog, a cat"),
        ('1.jpg,"two\nlines, and a comma"', "two\nlines, and a comma"),
        ('1.jpg,"a ""big"" dog"', 'a "big" dog'),
        ('1.jpg,a 19" screen', 'a 19" screen'),
        ('"1.jpg","a dog"', "a dog"),
        ("1.jpg,", ""),
        ("1.jpg,a; b\tc", "a; b\tc"),
    ],
)
def test_rows_that_fit(row: str, caption: str, tmp_path: Path) -> None:
    entries = folder_with(tmp_path, "captions.csv", f"file_name,caption\n{row}\n2.jpg,two\n", "12")
    assert captions(entries) == [("1.jpg", caption), ("2.jpg", "two")]
    assert quarantined(entries) == []


def test_the_file_name_may_be_the_last_column(tmp_path: Path) -> None:
    table = 'caption,file_name\n"two\nlines",1.jpg\n"open,2.jpg\nthree,3.jpg\n"a ""b"" c",4.jpg\n'
    entries = folder_with(tmp_path, "captions.csv", table, "1234")
    assert captions(entries) == [("1.jpg", "two\nlines"), ("3.jpg", "three"), ("4.jpg", 'a "b" c')]
    assert quarantined(entries)[0][0] == "captions.csv line 4"


# Its first line


@pytest.mark.parametrize(
    "first",
    [
        "\ufefffile_name,caption",
        " file_name , caption ",
        '"file_name","caption"',
        "file_name,text",
        "\nfile_name,caption",
        "file_name,caption,,",
    ],
)
def test_first_lines_that_are_read(first: str, tmp_path: Path) -> None:
    more = "," * (first.count(",") - 1)
    entries = folder_with(tmp_path, "captions.csv", f"{first}\n1.jpg,one{more}\n", "1")
    assert captions(entries) == [("1.jpg", "one")]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("image,caption\n1.jpg,one\n", r"no column `file_name`; its first line reads \['image', 'caption'\]"),
        ("File_Name,caption\n1.jpg,one\n", "no column `file_name`"),
        (
            "file_name,label\n1.jpg,one\n",
            r"no column `caption`; its first line reads \['file_name', 'label'\]",
        ),
        ("file_name\n1.jpg\n", "no column `caption`"),
        ("file_name,caption,caption\n1.jpg,one,two\n", "the column `caption` is there twice"),
        ("file_name,file_name,caption\n1.jpg,1.jpg,one\n", "the column `file_name` is there twice"),
        (
            "file_name;caption\n1.jpg;one\n",
            "its columns are separated by semicolons; expected comma-separated",
        ),
        ('"file_name";"caption"\n1.jpg;one\n', "its columns are separated by semicolons"),
        ("file_name\tcaption\n1.jpg\tone\n", "its columns are separated by tabs"),
        ("file_name|caption\n1.jpg|one\n", "its columns are separated by bars"),
        ("1.jpg,one\n", r"no column `file_name`; .*expected .*file_name,caption"),
        ('file_name,"caption\n1.jpg,one\n', "its first line is no list of columns"),
        ("", "no column `file_name`"),
        ("file_name,caption\n1.jpg,one\n".encode("utf-16"), "is UTF-16, which is not read; save it as UTF-8"),
        ("file_name,caption\n1.jpg,one\n".encode("utf-16-be"), "is UTF-16"),
        (codecs.BOM_UTF16_BE + "file_name,caption\n".encode("utf-16-be"), "is UTF-16"),
    ],
)
def test_a_table_of_another_kind_is_refused_in_one_line(
    content: str | bytes, message: str, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=rf"captions\.csv: {message}") as caught:
        folder_with(tmp_path, "captions.csv", content, "1")
    assert "\n" not in str(caught.value)


# metadata.jsonl


def json_lines(*rows: object) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


@pytest.mark.parametrize(
    "content",
    [
        json.dumps([{"file_name": "1.jpg", "caption": "one"}]),
        json.dumps([{"file_name": "1.jpg", "caption": "one"}], indent=2),
        json.dumps({"file_name": "1.jpg", "caption": "one"}, indent=2),
        "\n  [\n",
        "\ufeff[\n{}\n]",
    ],
)
def test_json_over_several_lines_is_refused_in_one_line(content: str, tmp_path: Path) -> None:
    (tmp_path / "1.txt").write_text("not to be taken instead")
    with pytest.raises(
        UserError, match=r"metadata\.jsonl: is one JSON value.*expected an object on each line"
    ):
        folder_with(tmp_path, "metadata.jsonl", content, "1")


@pytest.mark.parametrize(
    "name",
    ["metadata.json", "metadata.csv", "captions.json", "captions.jsonl", "captions.tsv", "Metadata.JSON"],
)
def test_a_table_under_another_name_is_refused_rather_than_passed_over(name: str, tmp_path: Path) -> None:
    (tmp_path / "1.txt").write_text("not to be taken instead")
    message = rf"{name}: a table of this name is not read; expected metadata\.jsonl \(.*or captions\.csv"
    with pytest.raises(UserError, match=message):
        folder_with(tmp_path, name, "{}", "1")


@pytest.mark.parametrize(
    ("name", "place"),
    [
        ("a/1.jpg", "a/1.jpg"),
        ("./a/1.jpg", "a/1.jpg"),
        ("a//1.jpg", "a/1.jpg"),
        ("a/../a/1.jpg", "a/1.jpg"),
        ("a\\1.jpg", "a/1.jpg"),
        (".\\a\\1.jpg", "a/1.jpg"),
        ("{root}/a/1.jpg", "a/1.jpg"),
        ("back\\slash.jpg", "back\\slash.jpg"),
    ],
)
def test_file_names_that_match_a_file(name: str, place: str, tmp_path: Path) -> None:
    row = {"file_name": name.replace("{root}", str(tmp_path)), "caption": "one"}
    entries = folder_with(tmp_path, "metadata.jsonl", json_lines(row), ["a/1", "back\\slash"])
    assert captions(entries) == [(place, "one")]
    assert skipped(entries) == {n: "not in the table" for n in ("a/1.jpg", "back\\slash.jpg") if n != place}


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("../out.jpg", "leads out of the folder"),
        ("a/../../out.jpg", "leads out of the folder"),
        ("..\\out.jpg", "leads out of the folder"),
        ("/etc/hostname", "leads out of the folder"),
        ("C:\\photos\\1.jpg", "is an absolute path"),
        ("\\\\server\\share\\1.jpg", "leads out of the folder"),
        ("1.jpg\0", "is no name that a file can have"),
        ("\ud800.jpg", "is no name that a file can have"),
        ("", "no `file_name`"),
        (7, "no `file_name`"),
        (None, "no `file_name`"),
    ],
)
def test_file_names_that_are_not_opened(name: object, message: str, tmp_path: Path) -> None:
    inside = tmp_path / "photos"
    inside.mkdir()
    (tmp_path / "out.jpg").write_bytes(b"x")
    rows = [{"file_name": "1.jpg", "caption": "one"}, {"file_name": name, "caption": "two"}]
    entries = folder_with(inside, "metadata.jsonl", json_lines(*rows), "1")
    assert captions(entries) == [("1.jpg", "one")]
    ((place, detail),) = quarantined(entries)
    assert place == "metadata.jsonl line 2"
    assert message in detail
    assert str(tmp_path) not in detail


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_json_lines_with_any_line_end_and_a_mark(end: str, tmp_path: Path) -> None:
    rows = [
        '{"file_name": "1.jpg", "caption": "one"}',
        "",
        '{"file_name": ',
        '{"file_name": "2.jpg", "text": "two"}',
    ]
    entries = folder_with(tmp_path, "metadata.jsonl", "\ufeff" + end.join(rows), "12")
    assert captions(entries) == [("1.jpg", "one"), ("2.jpg", "two")]
    assert [name for name, _ in quarantined(entries)] == ["metadata.jsonl line 3"]


def test_json_lines_in_another_encoding(tmp_path: Path) -> None:
    row = {"file_name": "1.jpg", "caption": "one"}
    with pytest.raises(UserError, match=r"metadata\.jsonl: is UTF-16, which is not read; save it as UTF-8"):
        folder_with(tmp_path, "metadata.jsonl", json_lines(row).encode("utf-16"), "1")
    latin = json_lines(row) + '{"file_name": "2.jpg", "caption": "Bär"}\n'
    entries = folder_with(tmp_path, "metadata.jsonl", latin.encode("latin-1"), "12")
    assert captions(entries) == [("1.jpg", "one")]
    assert quarantined(entries) == [("metadata.jsonl line 2", "not UTF-8; save it as UTF-8")]


# What the table does not list


@pytest.mark.parametrize("table", ["metadata.jsonl", "captions.csv", "Captions.CSV"])
def test_what_no_row_lists_is_named(table: str, tmp_path: Path) -> None:
    rows = [{"file_name": name, "caption": name} for name in ("1.jpg", "sub/2.jpg", "gone.jpg")]
    content = (
        json_lines(*rows)
        if table.endswith("l")
        else "file_name,caption\n1.jpg,1.jpg\nsub/2.jpg,2\ngone.jpg,x\n"
    )
    for name in ("3.avif", "1.txt", ".DS_Store", "notes.md"):
        (tmp_path / name).write_bytes(b"")
    entries = folder_with(tmp_path, table, content, ["1", "2", "sub/2", "sub/3"])
    assert [name for name, _ in captions(entries)] == ["1.jpg", "sub/2.jpg"]
    assert quarantined(entries) == [("gone.jpg", "No such file or directory")]
    assert skipped(entries) == {
        "2.jpg": "not in the table",
        "sub/3.jpg": "not in the table",
        "3.avif": "format not decoded (.avif)",
        "1.txt": f"caption file unused beside {table}",
        ".DS_Store": "hidden file",
        "notes.md": "not an image",
    }


@pytest.mark.parametrize("name", [".hidden.jpg", ".folder/1.jpg", "1.avif", "1.txt", "noextension"])
def test_what_a_row_lists_is_not_skipped_whatever_its_name(name: str, tmp_path: Path) -> None:
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_bytes(b"x")
    entries = folder_with(tmp_path, "metadata.jsonl", json_lines({"file_name": name, "caption": "one"}), "")
    assert entries == [Sample(name, b"x", "one")]


def test_a_file_listed_through_a_link_is_listed(tmp_path: Path) -> None:
    """The walk meets each of these folders by the other of its two names."""
    for link, real in (("a", "b"), ("z", "c")):
        (tmp_path / real).mkdir()
        (tmp_path / link).symlink_to(real)
    rows = [{"file_name": name, "caption": name} for name in ("b/1.jpg", "z/2.jpg")]
    entries = folder_with(tmp_path, "metadata.jsonl", json_lines(*rows), ["b/1", "b/3", "c/2"])
    assert [name for name, _ in captions(entries)] == ["b/1.jpg", "z/2.jpg"]
    assert skipped(entries) == {"a/3.jpg": "not in the table"}


def test_of_two_tables_the_first_is_used_and_the_other_is_named(tmp_path: Path) -> None:
    (tmp_path / "captions.csv").write_text("file_name,caption\n1.jpg,from csv\n")
    rows = json_lines({"file_name": "1.jpg", "caption": "from json"})
    entries = folder_with(tmp_path, "metadata.jsonl", rows, "1")
    assert captions(entries) == [("1.jpg", "from json")]
    assert skipped(entries) == {"captions.csv": "another table is used (metadata.jsonl)"}


def test_a_table_without_rows_is_reported_with_the_files_there(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"nothing but 2 skipped files \(2 not in the table\) found there"):
        folder_with(tmp_path, "captions.csv", "file_name,caption\n", "12")
