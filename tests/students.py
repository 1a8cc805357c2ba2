"""Students of a miniature project, learned in turn, for one process or several: `python students.py`.

They differ in the method and in the machine's switches. Each is `artifacts/models/<name>`; what part of a
training's whole state this process holds is written to `held-RANK.json`.
"""

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor

from fewstep.config.training import StudentTrainingConfig
from fewstep.core.paths import MODELS, TEACHER, TRIPLETS
from fewstep.core.processes import barrier, is_main_process
from fewstep.core.stage import run
from fewstep.methods import compress, halve, reflow
from fewstep.students.learn import Task, learn, method_module
from fewstep.training.lora import LoraSettings
from fewstep.training.sharding import full_tensor
from fewstep.training.state import State

TRAINING = StudentTrainingConfig(steps=4, batch_size=5, learning_rate=1e-3, ema=0.9, clip=0.1)
MUON = TRAINING.model_copy(update={"optimizer": "muon"})
REFLOW = reflow.Config(training=TRAINING, **{"from": "teacher"})
HALVE = halve.Config(training=TRAINING, steps=1, **{"from": "teacher"})
SMALLER = compress.Config(training=TRAINING, unet="small", **{"from": "teacher"})
ADAPTER = LoraSettings(rank=3, alpha=4.0)
STUDENTS: dict[str, tuple[Any, dict[str, str]]] = {
    "micro": (
        REFLOW.model_copy(update={"training": MUON}),
        {"MICRO_BATCH": "2", "EMA_ON_HOST": "1", "TRACKERS": "tensorboard"},
    ),
    "adapter": (HALVE.model_copy(update={"lora": ADAPTER}), {"CHECKPOINT_ACTIVATIONS": "1"}),
    "smaller": (SMALLER, {"CHECKPOINT_ACTIVATIONS": "1"}),
    # With fewer shapes of blocks than the teacher: compilation takes longer than all else here.
    "compiled": (REFLOW.model_copy(update={"from_": "smaller"}), {"COMPILE": "aot_eager"}),
    "half": (HALVE.model_copy(update={"training": MUON}), {}),
}
"""Name -> configuration and switches."""
FAKE = {"learning_rate": 1e-3, "clip": 0.1}
METHODS: dict[str, dict[str, Any]] = {
    "dmd2": {"fake": FAKE, "steps": 2, "student_every": 2, "gan": {}, "decoupled": True, "ida": 0.1},
    "flash": {"grid": 4, "distance": "l2", "discriminator": FAKE},
    "flow_map": {"warmup_tangent": 2},
    "lcm": {"grid": 4},
    "piecewise": {"windows": 2, "solver_steps": 2},
    "sdxs": {"fake": FAKE, "warmup_steps": 1, "gan": {"from_step": 1, "optimizer": FAKE}},
    "sid": {"fake": FAKE},
    "tdm": {"fake": FAKE, "steps": 2},
}
"""Method -> its parameters, without any switch."""
SHORT = TRAINING.model_copy(update={"steps": 3})
for method, values in METHODS.items():
    settings = {"method": method, "from": "teacher", "training": SHORT, "guidance": 2.0} | values
    STUDENTS[method] = (method_module(method).Config.model_validate(settings), {})
COMPARED = ("micro", "adapter")
"""Students whose last saved state is compared, tensor by tensor."""
SCALE = 2.0**8
"""Of half precision: small enough for no gradient to overflow, which in parts of a batch it does less."""


def main() -> None:
    for name, (config, switches) in STUDENTS.items():
        barrier()  # The main process has stored the student before, from which this one may start.
        place = {f"FEWSTEP_{switch}": value for switch, value in switches.items()}
        if "RANK" not in os.environ:
            # Compiled and FSDP-sharded it must equal one process without compilation, which is faster.
            place.pop("FEWSTEP_COMPILE", None)
        place["ACCELERATE_MIXED_PRECISION"] = "fp16" if name == "half" else "no"
        with patch.dict(os.environ, place), recorded(name):
            features = TEACHER if config.needs_feature_maps else None
            learn(
                Task(
                    "learn",
                    name,
                    type(config).__module__.split(".")[-1],
                    config,
                    [TRIPLETS / "0"],
                    0,
                    features,
                )
            )


@contextmanager
def recorded(name: str) -> Iterator[None]:
    """Note what part of the state is here when a training begins to put its network together again."""
    file = Path(f"held-{os.environ.get('RANK', '0')}.json")
    finish = State.finish

    def noted(state: State, chosen: Mapping[str, Tensor]) -> None:
        tensors = state.tensors().values()
        share = sum(map(held, tensors)) / sum(tensor.numel() for tensor in tensors)
        known = json.loads(file.read_text()) if file.exists() else {}
        file.write_text(json.dumps(known | {name: share}))
        if name in COMPARED:
            full = {key: full_tensor(tensor.detach()) for key, tensor in state.tensors().items()}
            saved = state.snapshot()
            assert saved.keys() == (full.keys() if is_main_process() else set())
            assert all(torch.equal(full[key].cpu(), copy) for key, copy in saved.items())
        finish(state, chosen)

    with patch.object(State, "finish", noted):
        yield


def held(tensor: Tensor) -> int:
    """Numbers of a tensor that are in this process."""
    return tensor.to_local().numel() if isinstance(tensor, DTensor) else tensor.numel()


if __name__ == "__main__":
    with patch.object(torch.amp, "GradScaler", partial(torch.amp.GradScaler, init_scale=SCALE)):
        run(main, writes=MODELS, several=True)
