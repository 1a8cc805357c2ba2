"""Ancestry is followed by hash, whatever the folders are called."""

from pathlib import Path

import pytest

from fewstep.artifacts.manifest import Manifest, identity
from fewstep.core.errors import UserError
from fewstep.core.files import whole_folder, write_json
from fewstep.report.lineage import trace


def artifact(folder: Path, **made_from: Path) -> Path:
    """A sealed folder; an input called `name_3` stands for "name 3"."""
    with whole_folder(folder) as staging:
        inputs = {name.replace("_", " "): source for name, source in made_from.items()}
        Manifest.seal(staging, folder.parent.name, {"folder": folder.name}, inputs)
    return folder


@pytest.fixture
def student(tmp_path: Path) -> Path:
    """data -> teacher -> triplets 0, 1, 10 -> reflow -> student, the last also from the teacher."""
    data = artifact(tmp_path / "data")
    teacher = artifact(tmp_path / "models/teacher", data=data)
    shards = {f"triplets_{i}": artifact(tmp_path / f"triplets/{i}", teacher=teacher) for i in (10, 1, 0)}
    reflow = artifact(tmp_path / "models/reflow", **shards)
    return artifact(tmp_path / "models/student", reflow=reflow, teacher=teacher)


def test_ancestry_goes_down_to_the_data(student: Path, tmp_path: Path) -> None:
    lineage = trace([student], tmp_path)
    last = lineage[-1]
    assert last.name == "student" and last.identities == (identity(student),)
    assert [parent.name for parent in last.parents] == ["reflow", "teacher"]
    assert [ancestor.name for ancestor in last.ancestors] == ["data", "triplets"]


def test_everything_stands_after_what_it_was_made_from(student: Path, tmp_path: Path) -> None:
    seen: set[str] = set()
    for node in trace([student, student], tmp_path):
        assert {parent.anchor for parent in node.parents} <= seen and node.anchor not in seen
        seen.add(node.anchor)


def test_shards_are_one_node_in_their_order(student: Path, tmp_path: Path) -> None:
    (triplets,) = (node for node in trace([student], tmp_path) if node.name == "triplets")
    assert triplets.identities == tuple(identity(tmp_path / f"triplets/{i}") for i in (0, 1, 10))


def test_a_rebuilt_ancestor_is_not_mistaken_for_the_old_one(student: Path, tmp_path: Path) -> None:
    old = identity(tmp_path / "data")
    artifact(tmp_path / "data", other=tmp_path / "data")
    (data,) = (node for node in trace([student], tmp_path) if node.name == "data")
    assert data.identities == (old,) and data.kind is None


def test_a_manifest_of_another_version_is_named(student: Path, tmp_path: Path) -> None:
    write_json(student / "manifest.json", {"kind": "model", "surprise": 1})
    with pytest.raises(UserError, match=r"student/manifest\.json.*dvc repro"):
        trace([student], tmp_path)
