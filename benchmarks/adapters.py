"""A LoRA student at the size of Stable Diffusion 1.5, stored as its adapter and whole: bytes and seconds.

    python -m benchmarks.adapters [--rank 64] [--rounds 3]

Weights are random. Both artifacts are of one network; they are opened in turn, with the same weights as a
result. Prints JSON: the bytes of each artifact and the median seconds of opening it. Takes 11 GB of disk.
"""

import argparse
import json
import os
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

import torch
from benchmarks.sd15 import unet
from torch import nn

from fewstep.artifacts.manifest import Manifest
from fewstep.backbones.model import open_model, save_model, teacher_metadata
from fewstep.backbones.registry import family
from fewstep.core.precision import processor
from fewstep.diffusion.denoiser import Prediction
from fewstep.diffusion.schedules import RectifiedFlow
from fewstep.training.lora import LoraSettings, attach, detach

TEACHER = Path("teacher")


def main() -> None:
    """Write both artifacts and open them."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rank", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=3)
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        print(json.dumps({"cpu": processor(), **measured(chosen.rank, chosen.rounds)}))
        os.chdir("/")


def measured(rank: int, rounds: int) -> dict[str, dict[str, float]]:
    """Way of storing -> its bytes and seconds."""
    net: Any = unet()
    net.save_pretrained(TEACHER / "unet")
    backbone = family("sd")({"unet": lambda: net}, RectifiedFlow(), Prediction.FLOW)
    Manifest.seal(TEACHER, "teacher", teacher_metadata("sd", backbone), {})
    trained = backbone.base_net(TEACHER)
    attach(trained, LoraSettings(rank=rank, alpha=rank), backbone.lora_targets, 0)
    for name, weight in trained.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(weight, std=0.02)
    adapter = detach(trained)
    student = replace(open_model(TEACHER, backbone), name="student", net=trained)
    starts = {"as adapter": TEACHER, "whole": None}
    for name, start in starts.items():
        save_model(
            Path(name), student, backbone, "reflow", {"teacher": TEACHER}, adapter=adapter, start=start
        )
    seconds: dict[str, list[float]] = {name: [] for name in starts}
    for _ in range(rounds):
        for name in starts:
            begun = time.perf_counter()
            opened = open_model(Path(name), backbone).net.state_dict()
            seconds[name].append(time.perf_counter() - begun)
            assert all(torch.equal(weight, opened[key]) for key, weight in trained.state_dict().items())
    return {
        name: {
            "bytes": sum(file.stat().st_size for file in Path(name).rglob("*") if file.is_file()),
            "seconds": round(median(seconds[name]), 2),
        }
        for name in starts
    }


if __name__ == "__main__":
    main()
