"""Custom models, defined in a module of the user; docs/custom_model.md walks through an example."""

import importlib
import shutil
import sys
from collections.abc import Callable, Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from fewstep.artifacts.manifest import NAME
from fewstep.backbones.architecture import ARCHITECTURE, open_own, save_own, untrained
from fewstep.core.errors import UserError
from fewstep.core.files import read_json, write_json
from fewstep.core.hardware import device
from fewstep.diffusion.denoiser import Conditions, Network, Prediction
from fewstep.diffusion.schedules import Schedule
from fewstep.diffusion.solvers import trailing

CODE, FACTORY = "code", "factory.json"


class CustomModel:
    """What the user's factory returns; override methods where the model differs. See `protocol.Backbone`.

    net: the denoising network. latent_shape: of one sample, e.g. (3, 32, 32). schedule: its noise schedule.
    prediction: what the network predicts. By default, the network works in pixel space, takes no conditions
    and is called as `net(x, time)`.
    """

    lora_targets: Sequence[str] = ()
    """Name suffixes of the layers that low-rank students adapt; empty: params must name them."""
    net_part = "net"
    """Name of the network in a low-rank student's adapter."""

    def __init__(
        self, net: nn.Module, latent_shape: tuple[int, ...], schedule: Schedule, prediction: Prediction
    ) -> None:
        self.net, self.latent_shape = net.to(device()).eval(), latent_shape
        self.schedule, self.prediction = schedule, prediction

    def call(self, net: nn.Module, x: Tensor, time: Tensor, conditions: Conditions) -> Tensor:
        """The network's output `[B, ...]` for x `[B, ...]` at `schedule.network_time(t)` `[B]`."""
        raw: Tensor = net(x, time)
        return raw

    def encode_prompts(self, prompts: Sequence[str]) -> Conditions:
        """Prompts as named tensors `[B, ...]`."""
        return {}

    def too_long(self, prompts: Sequence[str]) -> int:
        """Number of prompts that the text encoder truncates."""
        return 0

    def unconditional(self, negative_prompt: str = "") -> Conditions:
        """Conditions of guidance's unconditional branch, batch size 1."""
        return self.encode_prompts([negative_prompt])

    def release_encoders(self) -> None:
        """Free the memory of a text encoder that can be loaded again; by default there is none."""

    def encode(self, images: Tensor) -> Tensor:
        """Images `[B, 3, H, W]` in [-1, 1] as latents."""
        return images

    def decode(self, latents: Tensor, decoder: nn.Module | None = None) -> Tensor:
        """Latents as images; decoder: replaces this model's decoder."""
        return latents if decoder is None else decoder(latents)

    def decoder(self) -> nn.Module:
        """The module that `decode` runs."""
        return nn.Identity()

    def times(self, steps: int) -> list[float]:
        """`steps + 1` times from 1 to 0 at which the teacher is sampled."""
        return trailing(steps)

    def network(self, net: nn.Module, inputs: Sequence[str] = ()) -> Network:
        """Wrap a network of this kind as a callable; `conditions` also hold its further inputs."""
        return lambda x, time, conditions: self.call(net, x, time, conditions)

    def with_input(self, net: nn.Module, name: str) -> nn.Module:
        """A copy of a network that also takes the condition `name [B]`; an error by default."""
        raise UserError(f"{name}: this custom model has no `with_input` of its own")

    def base_net(self, teacher: Path) -> nn.Module:
        """The network of a teacher written by `adopt`, with weights of its own."""
        return self.load_net(teacher / "net")

    def load_net(self, folder: Path) -> nn.Module:
        """A network saved by `save_net`; strict. Without `config`, it has the teacher's architecture."""
        described = (folder / ARCHITECTURE).exists()
        return open_own(folder, untrained(folder) if described else deepcopy(self.net))

    def save_net(self, net: nn.Module, folder: Path) -> None:
        """Write the weights, and the class and arguments of a network with the attribute `config`."""
        save_own(net, folder)

    @classmethod
    def open(cls, folder: Path) -> "CustomModel":
        """Open a teacher written by `adopt`, from its copies of the user's modules and of the weights."""
        sys.dont_write_bytecode = True  # bytecode would change the artifact
        forget(folder / CODE)
        model = factory_in(folder / CODE, read_json(folder / FACTORY)["factory"])(False)
        model.net = model.load_net(folder / "net")
        return model


Adapter = CustomModel


def adopt(name: str, code: Path, folder: Path) -> CustomModel:
    """Write the model that the user's factory makes into `folder`.

    name: `package.module:factory`, imported from the working folder or the installed packages. code: folder
    with copies of its modules. Raises UserError if the factory returns no `CustomModel`.
    """
    model = factory_in(Path.cwd(), name)(True)
    if not isinstance(model, CustomModel):
        raise UserError(
            f"params.yaml: teacher.adopt = [{name}]: it returned {model!r}, not a "
            "fewstep.backbones.custom.CustomModel"
        )
    shutil.copytree(code, folder / CODE, ignore=shutil.ignore_patterns(NAME))
    write_json(folder / FACTORY, {"factory": name})
    model.save_net(model.net, folder / "net")
    return model


def factory_in(root: Path, name: str) -> Callable[[bool], Any]:
    """The factory `package.module:factory`; `root` is searched first for its module.

    It is called as `factory(trained)`: once with True, to load the trained weights; with False whenever the
    chain loads its own copy of the weights into the new network.
    """
    module, _, function = name.partition(":")
    sys.path.insert(0, str(root.resolve()))
    importlib.invalidate_caches()
    factory: Callable[[bool], Any] | None = getattr(importlib.import_module(module), function, None)
    if not callable(factory):
        raise UserError(f"params.yaml: teacher.adopt = [{name}]: {module} has no function {function}")
    return factory


def forget(code: Path) -> None:
    """Drop imported modules that have the names of those in `code`, so that these are imported next."""
    for file in code.rglob("*.py"):
        parts = file.relative_to(code).with_suffix("").parts
        for depth in range(len(parts)):
            sys.modules.pop(".".join(parts[: depth + 1]), None)
