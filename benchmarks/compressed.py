"""A compressed student of Stable Diffusion 1.5's geometry, trained by the real stages: time and memory.

    python -m benchmarks.compressed [--size small] [--pixels 512] [--batch 1] [--steps 2]

Weights are random, so nothing is downloaded. In a temporary project, with gradient checkpointing,
`import_teacher` imports a stock pipeline, `generate_triplets` draws as many triplets as are trained on, and
`compress` trains and saves the student. A process that knows diffusers alone then draws an image with the
teacher's pipeline and the student's network.

Prints the seconds of each step, and the memory of the stage `compress` beside what `fewstep check` estimates.
Private memory is what the process fills itself. Weight files are mapped into memory besides: their pages are
resident once they were read, but the kernel drops them where memory is short. The estimate has neither these
pages nor the process's own libraries. Takes 15 GB of disk.
"""

import argparse
import gc
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
import yaml
from benchmarks.sd15 import PROMPT, pipeline
from benchmarks.staged import measured
from rich.console import Console
from rich.table import Table
from tools.imports import ROOT

from fewstep.chain import load_chain
from fewstep.checks.designs import designs, networks
from fewstep.checks.memory import Need, need
from fewstep.checks.plan import trainings
from fewstep.checks.teacher import design
from fewstep.compression.unet import SIZES
from fewstep.config.base import PARAMS
from fewstep.core.hardware import mixed_precision
from fewstep.core.paths import MODELS, TEACHER
from fewstep.core.precision import processor
from fewstep.core.quiet import quiet

NAME = "compressed"
MEASURED = Path("measured.json")
ENVIRONMENT = {
    "FEWSTEP_CHECKPOINT_ACTIVATIONS": "1",
    "FEWSTEP_TRACKERS": "",
    "PYTHONPATH": os.pathsep.join(map(str, (ROOT / "src", ROOT))),
}
STRANGER = """
import sys
import torch, diffusers
teacher, net, prompt = sys.argv[1:]
unet = diffusers.UNet2DConditionModel.from_pretrained(net)
pipe = diffusers.DiffusionPipeline.from_pretrained(teacher, unet=unet)
pipe.set_progress_bar_config(disable=True)
image = pipe(prompt, num_inference_steps=1, guidance_scale=0.0, output_type="pt").images
assert not any(name.startswith("fewstep") for name in sys.modules) and image.isfinite().all()
weights = sum(weight.numel() for weight in pipe.unet.parameters())
print(f"stock diffusers {diffusers.__version__} draws {[*image.shape]} with {weights:,} parameters")
"""


def main() -> None:
    """Make the project, run its stages, and print; with --measure, run the stage `compress` in it."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--size", choices=SIZES, default="small")
    add("--pixels", type=int, default=512)
    add("--batch", type=int, default=1)
    add("--steps", type=int, default=2)
    add("--measure", action="store_true", help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    os.environ.update(ENVIRONMENT)
    if chosen.measure:
        MEASURED.write_text(json.dumps(measured("compress", NAME)))
        return
    quiet()
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        make_project(chosen)
        estimate = estimated()
        for stage in (["import_teacher"], ["generate_triplets", "0"]):
            run(str(ROOT / f"stages/{stage[0]}.py"), *stage[1:])
        run("-m", "benchmarks.compressed", "--measure")
        run("-c", STRANGER, str(TEACHER), str(MODELS / NAME / "net"), PROMPT)
        how = f"{mixed_precision()}, threads: {torch.get_num_threads()}"
        title = f"{processor()}, {how}: {chosen.size}, {chosen.pixels} px, batch {chosen.batch}"
        Console().print(table(title, json.loads(MEASURED.read_text()), estimate))


def make_project(chosen: argparse.Namespace) -> None:
    """Write the teacher's pipeline, its prompts and params.yaml into the working folder."""
    pipeline(side=chosen.pixels // 8).save_pretrained("stock")
    gc.collect()
    Path("prompts.txt").write_text(f"{PROMPT}\n")
    training = {"steps": chosen.steps, "batch_size": chosen.batch, "learning_rate": 5.0e-5}
    entry = {"from": "teacher", "unet": chosen.size, "data": "triplets", "training": training}
    params = yaml.safe_load((ROOT / PARAMS).read_text()) | {
        "judge": {"train": []},
        "features": str(TEACHER),
        "teacher": {"backbone": "sd", "train": [], "load": ["stock"], "adopt": []},
        "compress": {NAME: entry},
        **{section: {} for section in ("reflow", "halve", "students", "decoder", "export")},
        "evaluate": {"models": {NAME: [1]}},
    }
    params["data"]["resolution"] = chosen.pixels
    params["sampling"]["guidance"] = 7.5
    count = chosen.batch * chosen.steps
    drawn = {"prompts": "prompts.txt", "count": count, "shard_size": count, "steps": 1, "groups": [0]}
    params["triplets"] |= drawn
    PARAMS.write_text(yaml.safe_dump(params))


def estimated() -> Need:
    """What `fewstep check` estimates for the training."""
    chain = load_chain()
    denoiser = design(chain)
    assert denoiser is not None
    net, start, teacher = networks(chain, designs(chain, denoiser), NAME)
    return need(net, trainings(chain)[NAME], start, teacher)


def run(*command: str) -> None:
    """A Python process that must succeed."""
    subprocess.run([sys.executable, *command], check=True)


def table(title: str, figures: dict[str, Any], estimate: Need) -> Table:
    """Steps, and measured beside estimated memory."""
    rows = Table("", "measured", "estimated", title=title)
    rows.add_row("parameters", "", f"{estimate.parameters:,}")
    for number, (wall, cpu) in enumerate(figures["steps"], 1):
        rows.add_row(f"step {number}, s (CPU time)", f"{wall:.1f} ({cpu:.1f})", "")
    rows.add_row("weights, optimizer, GB", "", f"{estimate.state / 1e9:.2f}")
    rows.add_row("a step at its peak, GB", "", f"{(estimate.step or 0) / 1e9:.2f}")
    for what, value in figures["memory"].items():
        total = f"{estimate.total / 1e9:.2f}" if what == "in the steps" else ""
        rows.add_row(f"private memory {what}, GB", f"{value / 1e9:.2f}", total)
    rows.add_row("resident with pages of files, GB", f"{figures['resident'] / 1e9:.2f}", "")
    return rows


if __name__ == "__main__":
    main()
