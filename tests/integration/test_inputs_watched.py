"""A folder outside the project: what changes in it is prepared again, and dvc.lock names no place."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from fewstep.artifacts.manifest import identity
from fewstep.methods.decoder import tiny_geometry
from tests.integration.project import Project
from tests.photos import make_photo_folder

DATA = {"source": "folder", "path": "photos", "resolution": 16, "heldout": 0.5}
FOLDER: dict[str, Any] = {"data": DATA, "judge": {"train": []}, "features": "artifacts/models/teacher"}


def kept(project: Project) -> int:
    return int(json.loads((project.folder / "artifacts/data/statistics.json").read_text())["kept"])


def test_added_images_and_mended_captions_are_prepared_again(
    new_project: Callable[..., Project], tmp_path: Path
) -> None:
    project = new_project()
    photos = tmp_path / "elsewhere/photos"
    make_photo_folder(photos, 8)
    project.write_params(project.params | FOLDER | {"inputs": {"photos": str(photos)}})
    assert project.repro("prepare_data") == {"prepare_data"}
    assert project.repro("prepare_data") == set()

    make_photo_folder(tmp_path / "more", 10)
    for name in ("008.jpg", "008.txt", "009.jpg", "009.txt"):
        source = tmp_path / "more" / name
        (photos / name).write_bytes((source if source.exists() else source.with_suffix(".webp")).read_bytes())
    assert project.repro("prepare_data") == {"prepare_data"}
    assert kept(project) == 10
    (photos / "000.txt").write_text("a mended caption")
    assert project.repro("prepare_data") == {"prepare_data"}
    (photos / "000.jpg").unlink()
    assert project.repro("prepare_data") == {"prepare_data"}
    assert kept(project) == 9

    # The same files elsewhere are the same input; where they are is nobody's business.
    photos.rename(tmp_path / "moved")
    project.write_params(project.params | {"inputs": {"photos": str(tmp_path / "moved")}})
    assert project.repro("prepare_data") == set()
    assert str(tmp_path) not in (project.folder / "dvc.lock").read_text()


def test_a_plain_path_is_watched_too(new_project: Callable[..., Project], tmp_path: Path) -> None:
    project = new_project()
    make_photo_folder(tmp_path / "photos", 8)
    project.write_params(project.params | FOLDER | {"data": {**DATA, "path": str(tmp_path / "photos")}})
    assert project.repro("prepare_data") == {"prepare_data"}
    (tmp_path / "photos/000.jpg").unlink()
    assert project.repro("prepare_data") == {"prepare_data"}
    assert kept(project) == 7


def test_a_decoder_of_the_users_is_taken_again_when_it_changes(copied: Project, tmp_path: Path) -> None:
    folder, model = tmp_path / "taesd", copied.folder / "artifacts/models/mine"
    torch.manual_seed(0)
    tiny_geometry(4, 2, 8).save_pretrained(folder)
    params = copied.params
    params["decoder"]["mine"] = {"from": "one_step", "data": "inputs", "load": "taesd"}
    copied.write_params(params | {"inputs": {"taesd": str(folder)}})
    assert copied.repro("decoder") == {"decoder@mine"}
    assert copied.repro("decoder") == set()
    before = identity(model)
    tiny_geometry(4, 2, 8).save_pretrained(folder)
    assert copied.repro("decoder") == {"decoder@mine"}
    assert identity(model) != before
    assert str(tmp_path) not in (copied.folder / "dvc.lock").read_text()
