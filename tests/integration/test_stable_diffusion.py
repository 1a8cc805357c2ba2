"""The README's path to Stable Diffusion and a folder of photographs, from `fewstep check` to the report.

`params/instaflow_sd15.yaml` as it is, but for sizes: a miniature of the real classes, small images, few
steps. What decides whether the path reaches its end is as wide as in Stable Diffusion: its autoencoder's 512
features.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import diffusers as d
import pytest
import torch
import yaml

from fewstep.cli import main
from tests.integration.project import ROOT, Project
from tests.photos import make_photo_folder
from tests.pipelines import sd

SD15 = ROOT / "params/instaflow_sd15.yaml"
WIDTH, SIDE, LATENT_SIDE = 512, 8, 4
IMAGES, DRAWN = 1000, 516
SMALL = {"steps": 2, "batch_size": 4, "warmup": 0}


def make_teacher(folder: Path) -> None:
    """Stable Diffusion's anatomy with an autoencoder of two levels, the second of real width."""
    torch.manual_seed(0)
    pipeline = sd()
    vae = d.AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        block_out_channels=(8, WIDTH),
        latent_channels=4,
        norm_num_groups=4,
        mid_block_add_attention=False,
    )
    pipeline.unet.register_to_config(sample_size=LATENT_SIDE)
    pipeline.register_modules(vae=vae)
    pipeline.save_pretrained(folder)


def make_images(folder: Path) -> None:
    """Photographs, and one that cannot be read."""
    make_photo_folder(folder, IMAGES)
    (folder / "broken.jpg").write_bytes(b"\xff\xd8\xff no picture")
    (folder / "broken.txt").write_text("a photograph that cannot be read")


def miniature(inputs: dict[str, str]) -> dict[str, Any]:
    """The parameters with everything small that may be."""
    params: dict[str, Any] = yaml.safe_load(SD15.read_text())
    params["inputs"] = inputs
    params["teacher"]["load"] = ["model"]
    params["data"] |= {"resolution": SIDE, "heldout": 0.6, "filters": {}}
    params["sampling"]["steps"] = 2
    params["triplets"] |= {"count": 16, "groups": [0], "shard_size": 16, "steps": 2}
    params["evaluation_set"] |= {"pictures": DRAWN, "grid": 4}
    params["evaluate"]["models"] = {"one_step": [1]}
    for entry in (*params["reflow"].values(), *params["halve"].values(), *params["students"].values()):
        entry["training"] |= SMALL
        entry["lora"] = {"rank": 2, "alpha": 2}
    return params


def test_the_file_for_stable_diffusion_leads_from_check_to_report(
    new_project: Callable[..., Project],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    make_teacher(tmp_path / "stock")
    make_images(tmp_path / "images")
    params = miniature({"images": str(tmp_path / "images"), "model": str(tmp_path / "stock")})
    project = new_project(params)

    few = params | {"evaluation_set": params["evaluation_set"] | {"pictures": 300}}
    project.write_params(few)
    monkeypatch.chdir(project.folder)
    monkeypatch.setenv("COLUMNS", "200")
    with pytest.raises(SystemExit):
        main(["check"])
    assert "evaluation_set.pictures = 300: cannot fill the 512 features" in capsys.readouterr().err

    project.write_params(params)
    main(["check"])
    assert "warning" not in capsys.readouterr().out

    ran = project.repro()
    assert {"import_teacher@model", "reflow@reflow", "halve@4", "halve@2", "distill@one_step"} < ran
    quarantined = (project.folder / "artifacts/data/quarantine.jsonl").read_text().splitlines()
    assert [json.loads(line)["name"] for line in quarantined] == ["broken.jpg"]
    metrics = json.loads((project.folder / "metrics/one_step.json").read_text())
    assert (metrics["pictures"], metrics["features"]) == (DRAWN, "autoencoder")
    assert metrics["reference"] > WIDTH
    assert metrics["steps"]["1"]["prompt_accuracy"] is None
    assert metrics["steps"]["1"]["frechet_distance"] > 0
    student = d.StableDiffusionPipeline.from_pretrained(project.folder / "artifacts/exports/one_step")
    student.set_progress_bar_config(disable=True)
    image = student("a red star", num_inference_steps=1, guidance_scale=0).images[0]
    assert image.size == (SIDE, SIDE)
    assert (project.folder / "artifacts/exports/one_step/lora").is_dir()
    artifact = project.folder / "artifacts/models/one_step"
    assert {path.name for path in (artifact / "lora/before").iterdir()} == {"1", "2", "3"}
    assert not (artifact / "net").exists(), "four adapters of the teacher, one on the other"
    assert "one_step" in (project.folder / "reports/index.html").read_text()
    assert str(tmp_path) not in (project.folder / "dvc.lock").read_text()
