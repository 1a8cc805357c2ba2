"""Images per second of `encode_data`, in one process and in two, against a plain diffusers loop.

    python -m benchmarks.encode [--split train] [--batch 64] [--rounds 1]

For a clone that has run the chain: its prepared images and its teacher are encoded. The plain loop does what
a script would: read the tars with webdataset, encode batches of images and their captions, write one file.
It verifies no hash, encodes repeated captions again, and starts from zero after a kill. The stage is
measured with the start of its processes, the loop without. Each side runs once per round, in turn; the
median counts. Prints JSON: images per second.
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
import webdataset as wds
from diffusers import DiffusionPipeline
from safetensors.torch import save_file
from tools.imports import ROOT

from fewstep.config.base import PARAMS
from fewstep.core.hardware import autocast, device, mixed_precision
from fewstep.core.paths import DATA, ENCODED, TEACHER
from fewstep.core.precision import processor
from fewstep.data.pixels import from_uint8
from fewstep.data.shards import read_index

TWO = f"{sys.executable} -m accelerate.commands.launch --multi_gpu --num_processes 2 --main_process_port 0"


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--split", default="train")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=1)
    chosen = parser.parse_args()
    shards = read_index(DATA).splits[chosen.split]
    images = sum(shard.samples for shard in shards)
    with tempfile.TemporaryDirectory(dir=".") as folder:
        place = Path(folder)
        for path in (DATA, TEACHER):
            (place / path).parent.mkdir(parents=True, exist_ok=True)
            (place / path).symlink_to(path.resolve())
        (place / PARAMS).write_text(json.dumps({"encode_data": {chosen.split: {"dtype": "float32"}}}))
        sides: dict[str, Callable[[], None]] = {
            "plain loop": lambda: plain(
                [str(DATA / shard.shard) for shard in shards], chosen.batch, place / "plain.safetensors"
            ),
            "encode_data": lambda: stage(place, chosen.split, ""),
            "encode_data in two processes": lambda: stage(place, chosen.split, TWO),
        }
        seconds: dict[str, list[float]] = {name: [] for name in sides}
        for _ in range(chosen.rounds):
            for name, run in sides.items():
                begun = time.monotonic()
                run()
                seconds[name].append(time.monotonic() - begun)
    rates = {name: images / statistics.median(each) for name, each in seconds.items()}
    where = {"machine": processor(), "precision": mixed_precision(), "threads": torch.get_num_threads()}
    print(json.dumps({**where, "images": images, "images per second": rates}, indent=2))


@torch.no_grad()
def plain(tars: list[str], batch: int, out: Path) -> None:
    """Encode batch after batch, and write all at the end."""
    pipeline = DiffusionPipeline.from_pretrained(TEACHER, safety_checker=None).to(device())
    samples = wds.WebDataset(tars, shardshuffle=False).decode("rgb8").to_tuple("png", "json").batched(batch)
    latents, text = [], []
    for pixels, records in samples:
        with autocast():
            x = from_uint8(torch.from_numpy(np.stack(list(pixels)))).to(device())
            latents.append(pipeline.vae.encode(x).latent_dist.mean * pipeline.vae.config.scaling_factor)
            captions = [record["caption"] for record in records]
            text.append(pipeline.encode_prompt(captions, device(), 1, False)[0])
    save_file({"latents": torch.cat(latents).float().cpu(), "text": torch.cat(text).float().cpu()}, out)


def stage(place: Path, split: str, launch: str) -> None:
    """Run the stage anew."""
    for made in (place / ENCODED, place / ".checkpoints"):
        shutil.rmtree(made, ignore_errors=True)
    environment = {"FEWSTEP_LAUNCH": launch, "PYTHONPATH": os.pathsep.join(map(str, (ROOT / "src", ROOT)))}
    subprocess.run(
        [sys.executable, ROOT / "stages/encode_data.py", split],
        cwd=place,
        env={**os.environ, "ACCELERATE_MIXED_PRECISION": mixed_precision(), **environment},
        check=True,
        stdout=subprocess.DEVNULL,
    )


if __name__ == "__main__":
    main()
