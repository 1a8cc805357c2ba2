"""Real photographs in a folder go through the same chain, with features that need no labels."""

import json
from collections.abc import Callable
from pathlib import Path

from tests.integration.project import Project
from tests.photos import make_photo_folder


def test_a_folder_of_photographs_runs_through_the_chain(
    new_project: Callable[..., Project], tmp_path: Path
) -> None:
    make_photo_folder(tmp_path / "photos", 40)
    (tmp_path / "photos" / "broken.jpg").write_bytes(b"\xff\xd8\xff no picture")
    (tmp_path / "photos" / "broken.txt").write_text("a picture that cannot be read")
    project = new_project()
    params = project.params
    params["data"] = {
        "source": "folder",
        "path": str(tmp_path / "photos"),
        "resolution": 16,
        "heldout": 0.4,
        "shard_size": 16,
        "filters": {"min_side": 16, "max_quarantined_share": 0.2},
    }
    params |= {"judge": {"train": []}, "features": "artifacts/models/teacher", "halve": {}}
    params["triplets"]["shards"] = [0]
    params["students"] = {"one_step": params["students"]["one_step"] | {"from": "reflow"}}
    params["evaluate"]["models"] = {"teacher": [4, 1], "one_step": [1]}
    params["train_teacher"]["vae"]["channels"] = [8, 8]
    params["evaluation_set"] = {"pictures": 24, "reference": 40, "grid": 4}
    project.write_params(params)
    ran = project.repro()
    assert not any(stage.startswith(("train_judge", "halve")) for stage in ran)
    quarantined = (project.folder / "artifacts/data/quarantine.jsonl").read_text().splitlines()
    assert [json.loads(line)["name"] for line in quarantined] == ["broken.jpg"]
    metrics = json.loads((project.folder / "metrics/one_step.json").read_text())
    assert metrics["features"] == "autoencoder"
    assert metrics["steps"]["1"]["prompt_accuracy"] is None
    assert metrics["steps"]["1"]["frechet_distance"]["value"] > 0
