"""Artifacts are whole or not there, and refused by name when they are not what they were."""

from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from safetensors import SafetensorError

from fewstep.artifacts.manifest import Manifest, identity
from fewstep.core.errors import UserError
from fewstep.core.files import link_or_copy, read_json, whole_file, whole_folder, write_json


def made(folder: Path) -> Path:
    with whole_folder(folder) as staging:
        (staging / "part").mkdir()
        (staging / "part" / "weights").write_bytes(b"123")
        Manifest.seal(staging, "model", {"steps": 1}, {})
    return folder


def test_a_failure_leaves_what_was_there(tmp_path: Path) -> None:
    folder = made(tmp_path / "model")
    before = identity(folder)
    with pytest.raises(RuntimeError), whole_folder(folder) as staging:
        (staging / "half").write_text("written")
        raise RuntimeError
    assert identity(folder) == before
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_a_full_disk_is_one_clear_message(tmp_path: Path) -> None:
    with (
        pytest.raises(UserError, match=r"model: the disk is full; free some space"),
        whole_folder(tmp_path / "model"),
        Path("/dev/full").open("w") as stream,
    ):
        stream.write("x" * 100_000)
    assert not list(tmp_path.iterdir())


def test_a_full_disk_is_clear_from_safetensors_too(tmp_path: Path) -> None:
    """The words are those of a save on a full file system; /dev/full would be replaced by the file."""
    message = "Error while serializing: I/O error: No space left on device (os error 28)"
    with pytest.raises(UserError, match="model: the disk is full"), whole_folder(tmp_path / "model"):
        raise SafetensorError(message)
    with pytest.raises(SafetensorError, match="header"), whole_folder(tmp_path / "model"):
        raise SafetensorError("Error while deserializing header: invalid header")


def test_a_link_is_the_file_itself(tmp_path: Path) -> None:
    (tmp_path / "source").write_bytes(b"123")
    link_or_copy(tmp_path / "source", tmp_path / "target")
    assert (tmp_path / "target").samefile(tmp_path / "source")
    with pytest.raises(FileExistsError):
        link_or_copy(tmp_path / "source", tmp_path / "target")


@pytest.mark.skipif(not Path("/dev/shm").is_dir(), reason="needs a second file system")
def test_a_link_to_another_file_system_is_a_copy(tmp_path: Path) -> None:
    with TemporaryDirectory(dir="/dev/shm") as memory:
        source = Path(memory, "source")
        source.write_bytes(b"123")
        link_or_copy(source, tmp_path / "target")
    assert (tmp_path / "target").read_bytes() == b"123"


def test_json_is_deterministic_and_refuses_what_json_has_not(tmp_path: Path) -> None:
    write_json(tmp_path / "a.json", {"b": 1, "a": [1.5]})
    write_json(tmp_path / "b.json", {"a": [1.5], "b": 1})
    assert (tmp_path / "a.json").read_bytes() == (tmp_path / "b.json").read_bytes()
    with pytest.raises(ValueError, match="nan"):
        write_json(tmp_path / "c.json", {"a": float("nan")})
    assert not (tmp_path / "c.json").exists()
    with whole_file(tmp_path / "d.json") as staging:
        staging.write_text("{")
    with pytest.raises(UserError, match=r"d\.json: broken JSON"):
        read_json(tmp_path / "d.json")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda folder: (folder / "part/weights").write_bytes(b"124"), r"weights: differs from the manifest"),
        (lambda folder: (folder / "part/weights").unlink(), r"weights: is missing"),
        (lambda folder: (folder / "extra").write_text(""), r"extra: is not in the manifest"),
        (lambda folder: (folder / "manifest.json").write_text("{}"), r"not a manifest of this version"),
        (lambda folder: (folder / "manifest.json").unlink(), r"manifest\.json: no such file; `dvc repro`"),
    ],
)
def test_a_damaged_artifact_is_refused_by_name(
    damage: Callable[[Path], object], message: str, tmp_path: Path
) -> None:
    folder = made(tmp_path / "model")
    assert Manifest.open(folder, "model").facts == {"steps": 1}
    damage(folder)
    with pytest.raises(UserError, match=message):
        Manifest.open(folder, "model")


def test_an_artifact_of_another_kind_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is a 'model' artifact, a 'teacher' is needed here"):
        Manifest.open(made(tmp_path / "model"), "teacher")
