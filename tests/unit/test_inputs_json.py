"""Whatever a JSON member holds, its sample ends in the data set or in quarantine."""

from pathlib import Path

import pytest

from fewstep.sources.sample import (
    Sample,
    caption_in,
    labels_in,
    parse_object,
    score_in,
)
from fewstep.sources.webdataset import byte_stream
from tests.archives import JPG, expected, faults, good, read, samples, tar

DEEP = 100_000
BAD_JSON = {
    "empty": (b"", "empty"),
    "spaces": (b" \n" * 1_000_000, "empty"),
    "list": (b"[1]", "no JSON object"),
    "text": (b'"caption"', "no JSON object"),
    "number": (b"9" * 5000, "no JSON object"),
    "cut": (b'{"caption": "x"', None),
    "deep list": (b'{"caption": ' + b"[" * DEEP, "nested too deep"),
    "deep object": (b'{"a":' * DEEP + b"1" + b"}" * DEEP, "nested too deep"),
    "Latin-1": ('{"caption": "Bär"}'.encode("latin-1"), "not UTF-8"),
    "surrogate bytes": (b'{"caption": "\xed\xa0\x80"}', "not UTF-8"),
    "cut UTF-16": ('{"caption": "x"}'.encode("utf-16") + b"\0", "not UTF-16"),
    "NULs": (bytes(100), None),
    "control character": (b'{"caption": "a\x00b"}', None),
    "binary": (bytes(range(256)), None),
    "surrogate": (b'{"caption": "a \\ud800"}', "`caption` holds half a surrogate pair"),
    "surrogate label": (b'{"labels": {"\\ud800": "x"}}', "`labels` holds half a surrogate pair"),
    "surrogate value": (b'{"labels": {"x": "\\udfff"}}', "`labels` holds half a surrogate pair"),
} | {
    f"{key} = {value[:20]}": (f'{{"{key}": {value}}}'.encode(), problem)
    for key, problem, values in (
        ("caption", "`caption` is no text", ('["a"]', "1", '{"a": "b"}', "true", "NaN", "9" * 5000, "[]")),
        (
            "aesthetic_score",
            "`aesthetic_score` is no number",
            (
                *("9" * 400, "-" + "9" * 5000, f'"{"9" * 400}"', f'"{"x" * 5000}"', "NaN", "1e999"),
                *("-Infinity", '"N/A"', '"nan"', "[6]", "{}", "true", "false"),
            ),
        ),
        (
            "labels",
            "`labels` does not map attributes to texts",
            (
                '{"a": 1}',
                '{"a": null}',
                '{"a": {"b": "c"}}',
                '{"a": ["b"]}',
                '["a"]',
                '"a"',
                "1",
                "[]",
                "true",
            ),
        ),
    )
    for value in values
}


@pytest.mark.parametrize("name", BAD_JSON)
def test_json_that_cannot_be_used_is_quarantined(tmp_path: Path, name: str) -> None:
    content, problem = BAD_JSON[name]
    entries = read(tar(tmp_path / "a.tar", [*good("0"), JPG, ("1.json", content), *good("2")]))
    assert samples(entries) == expected("a.tar", "0", "2")
    (fault,) = faults(entries)
    assert (fault.name, fault.reason) == ("a.tar/1", "broken metadata")
    assert fault.detail == f".json: {problem}" if problem else len(fault.detail) < 120
    assert str(fault) == str(faults(read(tmp_path / "a.tar"))[0]), "the list is hashed"


@pytest.mark.parametrize(
    ("content", "caption", "score", "labels"),
    [
        ('{"caption": "ä"}'.encode("utf-8-sig"), "ä", None, None),
        ('{"caption": "ä"}'.encode("utf-16"), "ä", None, None),
        ('{"caption": "ä"}'.encode("utf-16-le"), "ä", None, None),
        ('{"caption": "ä"}'.encode("utf-32"), "ä", None, None),
        (b'{"caption": "x", "aesthetic_score": "6.5"}', "x", 6.5, None),
        (b'{"caption": "x", "aesthetic_score": ""}', "x", None, None),
        (b'{"caption": "x", "aesthetic_score": " "}', "x", None, None),
        (b'{"caption": "x", "aesthetic_score": null, "labels": null}', "x", None, None),
        (b'{"caption": "x", "aesthetic_score": 6, "labels": {"a": "b"}}', "x", 6.0, {"a": "b"}),
        (b'{"caption": "\\ud83e\\udd8a \\u0000"}', "\U0001f98a \0", None, None),
        (b'{"caption": "first", "caption": "last"}', "last", None, None),
        (
            b'{"caption": "x", "width": ' + b"9" * 5000 + b', "other": [NaN, -Infinity, 1e999]}',
            "x",
            None,
            None,
        ),
    ],
)
def test_json_that_can_be_used(
    tmp_path: Path, content: bytes, caption: str, score: float | None, labels: dict[str, str] | None
) -> None:
    entries = read(tar(tmp_path / "a.tar", [JPG, ("1.json", content)]))
    assert entries == [Sample("a.tar/1", JPG[1], caption, score, labels)]


@pytest.mark.parametrize("name", BAD_JSON)
def test_readers_raise_value_errors_only(name: str) -> None:
    def values(encoded: str | bytes) -> object:
        record = parse_object(encoded)
        return caption_in(record, "caption"), score_in(record, "aesthetic_score"), labels_in(record, "labels")

    for encoded in (BAD_JSON[name][0], BAD_JSON[name][0].decode("utf-8", "surrogateescape")):
        with pytest.raises(ValueError) as refused:  # noqa: PT011 - the messages are tested above
            values(encoded)
        assert len(str(refused.value)) < 120


def test_bytes_that_are_put_back_come_first() -> None:
    stream = byte_stream.ByteStream(iter([b"abc", b"def"]))
    assert stream.read(4) == b"abcd"
    stream.put_back(b"cd")
    assert (stream.read(1), stream.read(9), stream.read(1)) == (b"c", b"def", b"")
