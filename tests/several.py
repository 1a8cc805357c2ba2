"""A training as a stage of its own, for one process or several: `python several.py [OPTION=STEP]`.

It trains an autoencoder through `encode` and `decode`, not `forward`, on batches that divide unevenly, and
writes `weights.safetensors` and, per process, `seen-RANK.jsonl`. With kill=STEP or stop=STEP the last process
sends itself SIGKILL or SIGTERM at that step; with nan=STEP its loss is no number there, with huge=STEP
gradients of its last channel overflow float16's scale.
"""

import json
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from fewstep.config.training import TrainingConfig
from fewstep.core.keyed import Key
from fewstep.core.processes import is_main_process
from fewstep.core.stage import run
from fewstep.training.loop import train
from fewstep.training.method import Group, Method, Rows

OUT = Path("weights.safetensors")
RANK, WORLD = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
AT = dict(argument.split("=") for argument in sys.argv[1:])
TRAINING = {"steps": 9, "batch_size": 7, "learning_rate": 1e-2, "optimizer": "muon", "ema": 0.9, "clip": 0.1}


def images(positions: Sequence[int]) -> Tensor:
    """Noise `[B, 3, 6, 6]`, keyed."""
    return torch.from_numpy(Key(0, "pictures").normal(positions, (3, 6, 6)))


class Autoencoder(nn.Module):
    """Two convolutions, asked by name."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 8, 3, padding=1)
        self.last = nn.Conv2d(8, 3, 3, padding=1)

    def encode(self, x: Tensor) -> Tensor:
        return torch.tanh(self.first(x))

    def decode(self, z: Tensor) -> Tensor:
        return self.last(z)


Batch = tuple[Tensor, Sequence[int]]
"""Images, and their positions."""


class Coding(Method):
    """Mean squared error of what comes back."""

    def __init__(self, net: Autoencoder) -> None:
        self.net = net
        self.training = TrainingConfig.model_validate(TRAINING)
        self.groups = {"coder": Group({"net": net}, self.training)}

    def batch(self, rows: Rows) -> Batch:
        x = images(rows.positions)
        return x * float("nan") if self.is_time("nan", rows.step) else x, rows.positions

    def is_time(self, what: str, step: int) -> bool:
        return RANK == WORLD - 1 and AT.get(what) == str(step)

    def losses(self, group: str, batch: Batch, step: int) -> dict[str, Tensor]:
        # Not in `batch`, which runs while earlier steps do.
        x, positions = batch
        with Path(f"seen-{RANK}.jsonl").open("a") as file:
            file.write(json.dumps([step, list(positions)]) + "\n")
        if self.is_time("kill", step):
            os.kill(os.getpid(), signal.SIGKILL)
        if self.is_time("stop", step):
            os.kill(os.getpid(), signal.SIGTERM)
        factor = 1e6 if self.is_time("huge", step) else 0.0
        z = self.net.encode(x)
        error = self.net.decode(z) - x
        return {
            "squared": error.square().mean(),
            "absolute": 0.1 * error.abs().mean(),
            "huge": factor * self.net.decode(z.detach())[:, -1].float().mean(),
        }

    def preview(self) -> Tensor:
        return self.net.decode(self.net.encode(images(range(2))))


def main() -> None:
    torch.manual_seed(0)
    net = Autoencoder()
    train(Coding(net), "coder", 0, Path("states"))
    if is_main_process():
        save_file(net.state_dict(), OUT)


if __name__ == "__main__":
    run(main, writes=OUT, several=True)
