"""The chain at the size of Stable Diffusion: every method for two steps, with its time, memory and disk.

    python -m benchmarks.rehearsal [--teacher sd15 | sdxl] [--methods reflow halve direct ...]
                                   [--pixels 512] [--batch 1] [--steps 2] [--dtype float32]

Weights are random, so nothing is downloaded. In a temporary project `import_teacher` imports a stock
pipeline, `generate_triplets` draws as many triplets as are trained on, and every method trains a LoRA student
of rank 64 on the teacher, with gradient checkpointing; `flow_map_whole` is `flow_map` with all weights. Each
stage runs in a process of its own.

Prints the seconds of each stage and of its last step; the highest private memory in the steps beside what
`fewstep check` estimates, which leaves out the process's own libraries (first column of memory); the bytes of
the artifact, and of the state with which it could be continued. dtype: of the imported teacher on the disk.
Takes 25 GB of disk, for SDXL in float16 30 GB.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
import yaml
from benchmarks import sd15, sdxl
from benchmarks.staged import bytes_in, measured
from rich.console import Console
from rich.table import Table
from tools.imports import ROOT

from fewstep.chain import Chain, load_chain
from fewstep.checks.designs import designs, networks
from fewstep.checks.memory import need
from fewstep.checks.plan import trainings
from fewstep.checks.teacher import design
from fewstep.config.base import PARAMS
from fewstep.core.hardware import mixed_precision
from fewstep.core.paths import MODELS, TEACHER, TRIPLETS
from fewstep.core.precision import processor
from fewstep.core.quiet import quiet

LORA = {"rank": 64, "alpha": 64}
RATE = {"learning_rate": 1.0e-4, "clip": 1.0}
METHODS: dict[str, dict[str, Any]] = {
    "reflow": {},
    "halve": {"steps": 1},
    "direct": {},
    "lcm": {"grid": 4},
    "piecewise": {"windows": 2, "solver_steps": 2},
    "flash": {"grid": 4, "distance": "l2", "discriminator": RATE},
    "dmd2": {"fake": RATE, "steps": 2, "student_every": 1, "gan": {}},
    "sid": {"fake": RATE},
    "tdm": {"fake": RATE, "steps": 2},
    "sdxs": {"fake": RATE, "warmup_steps": 1},
    "flow_map": {},
    "flow_map_whole": {"method": "flow_map", "lora": None},
}
"""Method, or a name for it -> its parameters besides those that all have."""
SECTIONS = {"reflow": ("reflow", "reflow"), "halve": ("halve", "1")}
"""Method with a section of its own -> that section, and the entry's name; the others are in `students`."""
ENVIRONMENT = {
    "FEWSTEP_CHECKPOINT_ACTIVATIONS": "1",
    "FEWSTEP_KEEP_STATE": "1",
    "FEWSTEP_TRACKERS": "",
    "PYTHONPATH": os.pathsep.join(map(str, (ROOT / "src", ROOT))),
}
TEACHERS: dict[str, tuple[str, Callable[..., Any]]] = {
    "sd15": ("sd", sd15.pipeline),
    "sdxl": ("sdxl", sdxl.pipeline),
}
"""Teacher -> its backbone, and what makes its pipeline."""
MEASURED = Path("measured.json")
WIDTH = 140
"""Columns of the table."""


def main() -> None:
    """Make the project, run its stages, and print; with --stage, run that one in it."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--teacher", choices=TEACHERS, default="sd15")
    add("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    add("--pixels", type=int, default=512)
    add("--batch", type=int, default=1)
    add("--steps", type=int, default=2)
    add("--dtype", default="float32")
    add("--stage", nargs="+", help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    os.environ.update(ENVIRONMENT)
    if chosen.stage:
        MEASURED.write_text(json.dumps(measured(*chosen.stage)))
        return
    quiet()
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        # In a process of its own: the memory of the teacher's networks would stay with this one.
        making = get_context("spawn").Process(target=make_project, args=(chosen,))
        making.start()
        making.join()
        chain = load_chain()
        how = f"{mixed_precision()}, threads: {torch.get_num_threads()}"
        rows = Table(
            *("stage", "seconds", "last step, s", "libraries, GB", "in the steps, GB", "estimated, GB"),
            *("artifact, MB", "state, MB"),
            title=f"{processor()}, {how}: {chosen.teacher}, {chosen.pixels} px, batch {chosen.batch}",
        )
        for stage, arguments, made in (
            ("import_teacher", (), TEACHER),
            ("generate_triplets", ("0",), TRIPLETS / "0"),
            *(stage_of(method) for method in chosen.methods),
        ):
            command = ["-m", "benchmarks.rehearsal", "--stage", stage, *arguments]
            status = subprocess.run([sys.executable, *command], check=False).returncode
            name = " ".join([stage, *arguments])
            rows.add_row(*(row(name, made, chain) if status == 0 else (name, f"ended with {status}")))
            Console(width=WIDTH).print(rows)
        os.chdir("/")


def stage_of(method: str) -> tuple[str, tuple[str, ...], Path]:
    """The stage that trains by a method, its arguments, and its artifact."""
    if method in SECTIONS:
        _, entry = SECTIONS[method]
        return method, (entry,), MODELS / ("halve-1" if method == "halve" else entry)
    return "distill", (method,), MODELS / method


def make_project(chosen: argparse.Namespace) -> None:
    """Write the teacher's pipeline, its prompts and params.yaml into the working folder."""
    backbone, pipeline = TEACHERS[chosen.teacher]
    pipeline(side=chosen.pixels // 8).save_pretrained("stock")
    Path("prompts.txt").write_text(f"{sd15.PROMPT}\n")
    training = {"steps": chosen.steps, "batch_size": chosen.batch, **RATE}
    params = yaml.safe_load((ROOT / PARAMS).read_text()) | {
        "judge": {"train": []},
        "features": str(TEACHER),
        "teacher": {"backbone": backbone, "train": [], "load": ["stock"], "adopt": []},
        **{section: {} for section in ("compress", "reflow", "halve", "students", "decoder", "export")},
    }
    for method in chosen.methods:
        section, name = SECTIONS.get(method, ("students", method))
        named = {"method": method} if section == "students" else {}
        entry = {"from": "teacher", "training": training, "lora": LORA} | named | METHODS[method]
        params[section][name] = entry
    count = chosen.batch * chosen.steps
    params["triplets"] |= {"prompts": "prompts.txt", "count": count, "shard_size": count, "groups": [0]}
    params["triplets"] |= {"steps": 1}
    params["data"]["resolution"] = chosen.pixels
    params["import_teacher"]["dtype"] = chosen.dtype
    params["sampling"]["guidance"] = 7.5
    params["evaluate"] = {"models": {"teacher": [1]}}
    PARAMS.write_text(yaml.safe_dump(params))


def row(stage: str, made: Path, chain: Chain) -> list[str]:
    """What was measured of a stage, as the cells of its row."""
    figures = json.loads(MEASURED.read_text())
    memory = figures["memory"]
    last = f"{figures['steps'][-1][0]:.1f}" if figures["steps"] else ""
    inside = f"{memory.get('in the steps', memory['in the stage']) / 1e9:.2f}"
    states = [state for state in Path(".checkpoints").glob("*/*/*/step-*") if made.name in state.parts]
    return [
        stage,
        f"{figures['seconds']:.0f}",
        last,
        f"{memory['of the process alone'] / 1e9:.2f}",
        inside,
        estimated(chain, made.name),
        f"{bytes_in(made) / 1e6:,.0f}",
        f"{max(map(bytes_in, states)) / 1e6:,.0f}" if states else "",
    ]


def estimated(chain: Chain, model: str) -> str:
    """Memory of a model's training as `fewstep check` estimates it; empty for what is not trained."""
    denoiser = design(chain)
    if denoiser is None or model not in chain.models():
        return ""
    net, start, teacher = networks(chain, designs(chain, denoiser), model)
    return f"{need(net, trainings(chain)[model], start, teacher).total / 1e9:.2f}"


if __name__ == "__main__":
    main()
