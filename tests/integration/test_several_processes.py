"""Stages of the miniature chain in two processes, on CPUs, through accelerate's launcher."""

import shutil

import pytest
import torch
from safetensors.torch import load_file

from fewstep.artifacts.manifest import Manifest
from tests.began import PYTHON
from tests.integration.project import Project

TWO = f"{PYTHON} -m accelerate.commands.launch --num_processes 2 --main_process_port 0"
LAUNCH, SHARDS = f"{TWO} --multi_gpu", f"{TWO} --use_fsdp"
PLACE = {
    "ACCELERATE_MIXED_PRECISION": "no",
    "FEWSTEP_TRACKERS": "tensorboard",
    "CUDA_VISIBLE_DEVICES": "",
    "OMP_NUM_THREADS": "1",
}


def remade(project: Project, launch: str, *stages: str) -> str:
    """Make stages anew. Returns what they printed."""
    result = project.run("dvc", "repro", "-f", "-s", *stages, **PLACE, FEWSTEP_LAUNCH=launch)
    assert result.returncode == 0, result.stdout + result.stderr
    assert ("`accelerate launch`" in result.stderr) == bool(launch), "the launcher prints what it assumes"
    return result.stdout


def test_two_processes_make_the_artifacts_that_one_makes(copied: Project) -> None:
    """Encoded images and triplets to the byte; a network's weights to the rounding of a sum."""
    classifier, shard = (copied.folder / "artifacts" / name for name in ("judge", "triplets/0/0"))
    encoded = {}
    for launch in ("", LAUNCH):
        remade(copied, launch, "encode_data@train")
        encoded[launch] = copied.lock()["encode_data@train"]["outs"]
    assert encoded[""] == encoded[LAUNCH]
    made = []
    for launch in ("", LAUNCH, SHARDS):
        shutil.rmtree(copied.folder / ".checkpoints/generate_triplets", ignore_errors=True)  # finished shards
        remade(copied, launch, "train_judge@shapes", "generate_triplets@0")
        weights = load_file(classifier / "model.safetensors")
        made.append((weights, (shard / "triplets.safetensors").read_bytes()))
    (one, one_shard), *others = made
    for two, two_shard in others:
        assert one_shard == two_shard
        assert one.keys() == two.keys()
        for name, weight in one.items():
            torch.testing.assert_close(two[name], weight, rtol=0, atol=1e-5)


@pytest.mark.parametrize("launch", [LAUNCH, SHARDS], ids=["copies", "shards"])
def test_two_processes_make_one_teacher(launch: str, copied: Project) -> None:
    """An autoencoder, its latents, a text encoder and a U-Net: one process writes, once."""
    output = remade(copied, launch, "train_teacher@small")
    assert output.count("writes artifacts/models/teacher") == 1
    Manifest.open(copied.folder / "artifacts/models/teacher", "teacher")
    assert not list((copied.folder / ".checkpoints/train_teacher").iterdir()), "nothing unfinished is left"
