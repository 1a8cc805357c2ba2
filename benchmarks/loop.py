"""The training loop itself: overlap with a slow source, synchronisations with the host, time spent saving.

    python benchmarks/loop.py overlap [--source 0.05] [--steps 100]
    python benchmarks/loop.py synchronisations [--steps 100]
    python benchmarks/loop.py saving [--size 1000] [--seconds 300]

overlap: seconds per step where preparing a batch takes `--source` seconds more, with batches prepared ahead
and at their step. synchronisations: how often per step the host reads a tensor's value, which makes it wait
for a GPU. saving: share of the time in which states of `--size` MB were saved, and in which the loop waited
for that. FEWSTEP_SAVE_SHARE and FEWSTEP_SAVE_EVERY_SECONDS apply. Prints JSON.
"""

import argparse
import json
import math
import os
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from fewstep.config.training import TrainingConfig
from fewstep.core.hardware import device, mixed_precision
from fewstep.core.keyed import Key
from fewstep.evaluation.speed import machine
from fewstep.training.loop import train
from fewstep.training.method import Group, Method, Rows

ROWS = 32


class Toy(Method):
    """Two groups, each a square matrix that learns the identity; a batch takes `source` seconds more."""

    def __init__(self, side: int, steps: int, source: float = 0.0) -> None:
        torch.manual_seed(0)
        self.nets = {name: nn.Linear(side, side, bias=False) for name in ("first", "second")}
        self.side, self.source = side, source
        self.training = TrainingConfig(steps=steps, batch_size=ROWS, learning_rate=1e-4)
        self.groups = {name: Group({"net": net}, self.training) for name, net in self.nets.items()}

    def batch(self, rows: Rows) -> Tensor:
        time.sleep(self.source)
        return torch.from_numpy(Key(0, "x").normal(rows.positions, (self.side,))).to(device())

    def losses(self, group: str, batch: Tensor, step: int) -> dict[str, Tensor]:
        return {"square": (self.nets[group](batch) - batch).square().mean()}


def seconds_of(method: Method, **switches: str) -> float:
    """Seconds of a training; switches: by name without FEWSTEP_."""
    place = {f"FEWSTEP_{name}": value for name, value in switches.items()}
    with tempfile.TemporaryDirectory(dir=".") as folder, patch.dict(os.environ, place):
        begun = time.monotonic()
        train(method, "toy", 0, Path(folder))
        return time.monotonic() - begun


def overlap(chosen: argparse.Namespace) -> dict[str, Any]:
    """Seconds per step without the slow source, with it, and with it and no batch prepared ahead."""
    kinds = {"fast source": (0.0, "1"), "ahead": (chosen.source, "1"), "at its step": (chosen.source, "0")}
    return {
        name: seconds_of(Toy(chosen.side, chosen.steps, source), AHEAD=count) / chosen.steps
        for name, (source, count) in kinds.items()
    }


class Reads(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts values that torch reads from tensors of one element, as `item` and `float` do."""

    count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += func is torch.ops.aten._local_scalar_dense.default
        return func(*args, **(kwargs or {}))


class Lists(TorchFunctionMode):
    """Counts calls of `tolist`, which reads host memory without an operation of torch."""

    count = 0

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += func is Tensor.tolist
        return func(*args, **(kwargs or {}))


def synchronisations(chosen: argparse.Namespace) -> dict[str, Any]:
    """Reads per step of the loop's thread."""
    with Lists() as lists, Reads() as reads:  # type: ignore[no-untyped-call]
        seconds_of(Toy(16, chosen.steps), SAVE_EVERY_SECONDS="3600")
    return {"steps": chosen.steps, "reads per step": (lists.count + reads.count) / chosen.steps}


def saving(chosen: argparse.Namespace) -> dict[str, Any]:
    """Share of the time in which a state was saved, and in which the loop waited for it."""
    from fewstep.training.saving import Saver

    held: list[float] = []
    written: list[float] = []

    def timed(function: Callable[..., Any], seconds: list[float]) -> Callable[..., Any]:
        def call(*args: Any) -> Any:
            begun = time.monotonic()
            result = function(*args)
            seconds.append(time.monotonic() - begun)
            return result

        return call

    # A state is a matrix of weights and two of AdamW's moments, per group.
    side = math.isqrt(int(chosen.size * 1e6 / (2 * 3 * 4)))
    method = Toy(side, 10**9)
    begun, losses = time.monotonic(), method.losses

    def until(group: str, batch: Tensor, step: int) -> dict[str, Tensor]:
        if time.monotonic() - begun > chosen.seconds:
            raise KeyboardInterrupt
        return losses(group, batch, step)

    with (
        patch.object(method, "losses", until),
        patch.object(Saver, "save", timed(Saver.save, held)),
        patch.object(Saver, "_write", timed(Saver._write, written)),
        suppress(KeyboardInterrupt),
    ):
        seconds_of(method)
    total = time.monotonic() - begun
    return {
        "MB": chosen.size,
        "seconds": total,
        "saves": len(held),
        "seconds to copy": held,
        "seconds to write": written,
        "share held": sum(held) / total,
        "share of saving": (sum(held) + sum(written)) / total,
    }


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=["overlap", "synchronisations", "saving"])
    parser.add_argument("--source", type=float, default=0.05, help="seconds to prepare a batch")
    parser.add_argument("--side", type=int, default=1024, help="of the matrices of `overlap`")
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--size", type=float, default=1000, help="of the state, MB")
    parser.add_argument("--seconds", type=float, default=300, help="of the training of `saving`")
    chosen = parser.parse_args()
    os.environ.setdefault("FEWSTEP_TRACKERS", "")
    what = {"overlap": overlap, "synchronisations": synchronisations, "saving": saving}[chosen.what]
    place = {"machine": machine(device()), "precision": mixed_precision()}
    print(json.dumps(place | what(chosen), indent=2))


if __name__ == "__main__":
    main()
