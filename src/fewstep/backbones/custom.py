"""A model of one's own, from a module of its user; docs/custom_model.md walks through an example."""

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
    """What the user's factory returns; methods are overridden where the model differs. See `base.Backbone`.

    net: the denoising network. latent_shape: of one sample, e.g. (3, 32, 32). schedule: its noise schedule.
    prediction: what its output means. As it stands: a network called as `net(x, time)`, on images
    themselves, without conditions.
    """

    lora_targets: Sequence[str] = ()
    """Ends of the names of the layers for low-rank students; none: params must name them."""
    net_part = "net"
    """What the network is called in a low-rank student's adapter."""

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
        """How many prompts have an end that the text encoder does not read."""
        return 0

    def unconditional(self, negative_prompt: str = "") -> Conditions:
        """The other side of guidance, batch size 1."""
        return self.encode_prompts([negative_prompt])

    def encode(self, images: Tensor) -> Tensor:
        """Images `[B, 3, H, W]` in [-1, 1] as latents."""
        return images

    def decode(self, latents: Tensor, decoder: nn.Module | None = None) -> Tensor:
        """Latents as images; decoder: a model's own, in the place of this one."""
        return latents if decoder is None else decoder(latents)

    def decoder(self) -> nn.Module:
        """What `decode` runs."""
        return nn.Identity()

    def times(self, steps: int) -> list[float]:
        """`steps + 1` times from 1 to 0 at which the teacher is sampled."""
        return trailing(steps)

    def network(self, net: nn.Module, inputs: Sequence[str] = ()) -> Network:
        """How a network of this kind is called; it finds its further inputs among the conditions."""
        return lambda x, time, conditions: self.call(net, x, time, conditions)

    def with_input(self, net: nn.Module, name: str) -> nn.Module:
        """A copy of a network that also takes the condition `name [B]`; none as it stands."""
        raise UserError(f"{name}: this custom model has no `with_input` of its own")

    def load_net(self, folder: Path) -> nn.Module:
        """A network saved by `save_net`; strict. One without `config` is made like the teacher's."""
        described = (folder / ARCHITECTURE).exists()
        return open_own(folder, untrained(folder) if described else deepcopy(self.net))

    def save_net(self, net: nn.Module, folder: Path) -> None:
        """Write the weights, and how the network is made where its attribute `config` tells."""
        save_own(net, folder)

    @classmethod
    def open(cls, folder: Path) -> "CustomModel":
        """A teacher written by `adopt`: its own copies of the user's modules and of the weights."""
        sys.dont_write_bytecode = True  # beside the modules: an artifact stays as it is
        forget(folder / CODE)
        model = factory_in(folder / CODE, read_json(folder / FACTORY)["factory"])(False)
        model.net = model.load_net(folder / "net")
        return model


Adapter = CustomModel


def adopt(name: str, code: Path, folder: Path) -> CustomModel:
    """Write the model that the user's factory makes into `folder`.

    name: `package.module:factory`, imported as any program in the working folder does. code: copies of its
    modules. Raises UserError when it makes no model.
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
    """The factory `package.module:factory`; its module is looked for in `root` before anywhere else.

    It is called as `factory(trained)`: with True once, to bring the trained weights; with False whenever
    the chain puts its own copy of them into the network that was made.
    """
    module, _, function = name.partition(":")
    sys.path.insert(0, str(root.resolve()))
    importlib.invalidate_caches()
    factory: Callable[[bool], Any] | None = getattr(importlib.import_module(module), function, None)
    if not callable(factory):
        raise UserError(f"params.yaml: teacher.adopt = [{name}]: {module} has no function {function}")
    return factory


def forget(code: Path) -> None:
    """Drop what was imported by the names of the modules in `code`, so that these are imported next."""
    for file in code.rglob("*.py"):
        parts = file.relative_to(code).with_suffix("").parts
        for depth in range(len(parts)):
            sys.modules.pop(".".join(parts[: depth + 1]), None)
