"""A toy method with several networks as a stage of its own: `python adversaries.py [kill=STEP]`.

Student `G z` and fake `F z` are adapters on one base, the frozen teacher `T z`. The fake learns the student's
output, and the student follows the difference of fake and real samples (as in distribution matching), held
near its own slow average. A discriminator looks at tapped features of the frozen teacher, through which its
gradient reaches the student.

Closed form: real samples are `R z`. At equilibrium `G = F = R`, and the discriminator is at chance.
"""

import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn.functional import softplus

from fewstep.backbones.low_rank import twin
from fewstep.config.training import OptimizerConfig, TrainingConfig
from fewstep.core.keyed import Key
from fewstep.core.processes import is_main_process
from fewstep.core.stage import run
from fewstep.training.loop import train
from fewstep.training.lora import LoraSettings, attach, detach
from fewstep.training.method import Group, Method, Rows
from fewstep.training.taps import tapped

OUT = Path("weights.safetensors")
RANK, WORLD = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
AT = dict(argument.split("=") for argument in sys.argv[1:])
SIZE, STEPS, BATCH = 6, int(os.environ.get("FEWSTEP_STEPS", "12")), 14
LORA = LoraSettings(rank=SIZE, alpha=SIZE)
FAST = {"learning_rate": 0.02, "clip": 10.0, "betas": (0.5, 0.99)}


class Base(nn.Module):
    """Two linear layers: `second(first(z))`; the adapter is on the second."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(SIZE, SIZE, bias=False), nn.Linear(SIZE, SIZE, bias=False)
        nn.init.eye_(self.first.weight)

    def forward(self, z: Tensor) -> Tensor:
        return self.second(self.first(z))


class Head(nn.Module):
    """A linear discriminator of features and their squares, given z."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3 * SIZE, 1)

    def forward(self, features: Tensor, z: Tensor) -> Tensor:
        return self.layer(torch.cat([features, features.square(), features * z], dim=1))


def normal(stream: str, positions: Sequence[int]) -> Tensor:
    return torch.from_numpy(Key(0, stream).normal(positions, (SIZE,)))


class Adversaries(Method):
    """The fake and the discriminator are updated at every step, the student at every other one."""

    def __init__(self, base: Base, real: Tensor) -> None:
        self.real, self.teacher = real, base.requires_grad_(False)
        self.student, self.fake = twin(base), twin(base)
        for seed, net in enumerate((self.student, self.fake)):
            attach(net, LORA, ["second"], seed)
        self.head = Head()
        self.frozen = (self.teacher,)
        self.training = TrainingConfig(steps=STEPS, batch_size=BATCH, ema=0.9, decay="linear", **FAST)
        others = OptimizerConfig(**FAST)
        self.groups = {
            "student": Group({"net": self.student}, self.training, {"slow": 0.95}),
            "fake": Group({"net": self.fake}, others),
            "discriminator": Group({"head": self.head}, others),
        }

    def schedule(self, step: int) -> Sequence[str]:
        return ("student", "fake", "discriminator") if step % 2 == 0 else ("fake", "discriminator")

    def batch(self, rows: Rows) -> tuple[Tensor, Tensor]:
        z = normal("z", rows.positions)
        return z, z @ self.real.T

    def features(self, x: Tensor) -> Tensor:
        with tapped(self.teacher, ["first"]) as tapped_features:
            self.teacher(x)
        return tapped_features["first"]

    def losses(self, group: str, batch: tuple[Tensor, Tensor], step: int) -> dict[str, Tensor]:
        # Not in `batch`, which runs while earlier steps do.
        if RANK == WORLD - 1 and AT.get("kill") == str(step):
            os.kill(os.getpid(), signal.SIGKILL)
        z, real = batch
        if group == "fake":
            with torch.no_grad():
                x = self.student(z)
            return {"regression": (self.fake(z) - x).square().mean()}
        if group == "discriminator":
            with torch.no_grad():
                x = self.student(z)
            genuine, drawn = self.head(self.features(real), z), self.head(self.features(x), z)
            penalty = 0.1 * (genuine.square() + drawn.square()).mean()
            return {"bce": (softplus(-genuine) + softplus(drawn)).mean(), "penalty": penalty}
        x = self.student(z)
        with torch.no_grad():
            direction = self.fake(z) - real
            slow = self.groups["student"].averages["slow"]["net"](z)
        return {
            "matching": (x - (x - direction).detach()).square().mean(),
            "slow": 0.05 * (x - slow).square().mean(),
            "adversarial": 0.02 * softplus(-self.head(self.features(x), z)).mean(),
        }


def main() -> None:
    torch.manual_seed(0)
    base = Base()
    real = torch.eye(SIZE) + 0.3 * torch.randn(SIZE, SIZE)
    shared = base.second.weight
    method = Adversaries(base, real)
    assert {id(net.second.base_layer.weight) for net in (method.student, method.fake)} == {id(shared)}  # type: ignore[union-attr]
    train(method, "adversaries", 0, Path("states"))
    slow = {f"slow.{n}": w for n, w in full_tensor(method.groups["student"].averages["slow"]["net"]).items()}
    if is_main_process():
        adapters = {f"fake.{n}": w for n, w in detach(method.fake).weights.items()}
        adapters |= {f"student.{n}": w for n, w in detach(method.student).weights.items()}
        head = {f"head.{n}": w for n, w in method.head.state_dict().items()}
        save_file(adapters | head | slow | {"real": real, "base": shared.detach()}, OUT)


def full_tensor(net: nn.Module) -> dict[str, Tensor]:
    """Adapter weights of an average, which stays FSDP-sharded; every rank asks."""
    from fewstep.training.sharding import full_tensor as full

    return {name: full(w.detach()).clone() for name, w in net.named_parameters() if "lora_" in name}


if __name__ == "__main__":
    run(main, writes=OUT, several=True)
