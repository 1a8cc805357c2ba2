"""A training with a large state, as a stage of its own: `SIDE=2048 STEPS=40 python large_state.py`."""

import os
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from fewstep.config.training import TrainingConfig
from fewstep.core.keyed import Key
from fewstep.core.stage import run
from fewstep.training.loop import train
from fewstep.training.method import Group, Method, Rows

OUT = Path("weights.safetensors")
SIDE, STEPS = int(os.environ.get("SIDE", "2048")), int(os.environ.get("STEPS", "40"))
STATE = 3 * 4 * SIDE**2
"""Bytes of the state: the weights and AdamW's two moments, without step counts."""


class Large(Method):
    """A matrix of SIDE x SIDE weights learns the identity."""

    def __init__(self) -> None:
        torch.manual_seed(0)
        self.net = nn.Linear(SIDE, SIDE, bias=False)
        self.training = TrainingConfig(steps=STEPS, batch_size=2, learning_rate=1e-3)
        self.groups = {"large": Group({"net": self.net}, self.training)}

    def batch(self, rows: Rows) -> Tensor:
        return torch.from_numpy(Key(0, "x").normal(rows.positions, (SIDE,)))

    def losses(self, group: str, batch: Tensor, step: int) -> dict[str, Tensor]:
        return {"square": (self.net(batch) - batch).square().mean()}


def main() -> None:
    method = Large()
    train(method, "large", 0, Path("states"))
    save_file(method.net.state_dict(), OUT)


if __name__ == "__main__":
    run(main, writes=OUT)
