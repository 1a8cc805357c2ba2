"""What sharing is worth in methods with several networks.

    python benchmarks/methods.py flash [--steps 6] [--batch 32]     seconds of a step
    python benchmarks/methods.py memory                              bytes of weights

flash: a step that solves the teacher's ODE once, for student and discriminator, against one that solves it
for each of the two updates, as the authors' code does. Both alternate in one process.
memory: student, fake and teacher as adapters on one base, against adapters on a copy each.

Run in a clone whose triplets are there. Prints JSON.
"""

import argparse
import json
import os
import statistics
import tempfile
import time
from copy import deepcopy
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from fewstep.backbones.model import open_model
from fewstep.backbones.registry import open_backbone
from fewstep.core.hardware import device
from fewstep.core.paths import TEACHER, TRIPLETS
from fewstep.evaluation.speed import machine
from fewstep.methods import dmd2, flash
from fewstep.students import start
from fewstep.students.context import Context
from fewstep.training.loop import advance
from fewstep.training.state import State

OPTIMIZER: dict[str, Any] = {"learning_rate": 1e-5}
LORA = {"rank": 8, "alpha": 8.0}


class Twice(flash.Flash):
    """Solves the ODE in each group's update."""

    def prepare(self, batch: flash.Batch) -> flash.Batch:
        return batch

    def losses(self, group: str, batch: flash.Batch, step: int) -> dict[str, Tensor]:
        return super().losses(group, flash.Flash.prepare(self, batch), step)


def main() -> None:
    """Measure one of the two, and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=["flash", "memory"])
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--batch", type=int, default=32)
    chosen = parser.parse_args()
    os.environ.setdefault("FEWSTEP_TRACKERS", "")
    with tempfile.TemporaryDirectory() as folder:
        results = flash_steps(chosen, Path(folder)) if chosen.what == "flash" else weights(Path(folder))
    print(json.dumps({"machine": machine(device()), **results}, indent=2))


def context_of(config: Any) -> Context:
    """Inputs of a method on the teacher."""
    backbone = open_backbone(TEACHER)
    begun, student = start.start_and_student(open_model(TEACHER, backbone), "new", backbone, config, 0)
    return Context("new", 0, begun, student, backbone, [TRIPLETS / "0"], None, None)


def flash_steps(chosen: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Seconds of a step of either kind, and their ratio; the last of the four phases."""
    phase = {"modes": [0.4, 0.2, 0.2, 0.2], "matching": 0.7, "adversarial": 0.3}
    training = OPTIMIZER | {"steps": 1000, "batch_size": chosen.batch}
    values = {"method": "flash", "from": "teacher", "guidance": (1.0, 3.0), "distance": "l2"}
    config = flash.Config.model_validate(values | {"phases": [phase], "training": training})
    states = {}
    for kind in (flash.Flash, Twice):
        context = context_of(config)
        student = flash.student_of(config, context.student)
        states[kind.__name__] = State(kind(config, context, student), folder / kind.__name__)
    seconds: dict[str, list[float]] = {name: [] for name in states}
    for step in range(chosen.steps + 1):
        for name, state in states.items():
            begun = time.monotonic()
            advance(state, "new", 0, chosen.batch)
            if step:  # the first step warms up
                seconds[name].append(time.monotonic() - begun)
    medians = {name: statistics.median(each) for name, each in seconds.items()}
    return {"seconds a step": medians, "ratio": medians["Twice"] / medians["Flash"]}


def weights(folder: Path) -> dict[str, Any]:
    """Bytes of all weights of a dmd2 training with adapters."""
    values = {"method": "dmd2", "from": "teacher", "lora": LORA, "fake": OPTIMIZER}
    config = dmd2.Config.model_validate(values | {"training": OPTIMIZER | {"steps": 1, "batch_size": 1}})

    def measured() -> int:
        context = context_of(config)
        method = dmd2.METHOD(config, context, dmd2.student_of(config, context.student))
        nets: list[nn.Module] = [context.start.net, context.student.net, method.fake.net]
        sizes = {p.data_ptr(): p.numel() * p.itemsize for net in nets for p in net.parameters()}
        return sum(sizes.values())

    one = measured()
    start.twin = deepcopy  # type: ignore[assignment, attr-defined]
    copies = measured()
    return {"bytes": {"one base": one, "copies": copies}, "ratio": copies / one}


if __name__ == "__main__":
    main()
