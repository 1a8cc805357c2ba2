"""What is known of a teacher before it exists: the configuration files of its parts, and its denoiser."""

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from math import prod
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import try_to_load_from_cache

from fewstep.backbones.configurations import Configurations
from fewstep.backbones.parts import class_in
from fewstep.backbones.pipeline import INDEX
from fewstep.backbones.registry import family
from fewstep.backbones.sd_new import new_net, new_scheduler
from fewstep.backbones.weight_files import PLAIN, read_header, variant_of, variants
from fewstep.chain import Chain
from fewstep.checks.memory import Design
from fewstep.core.errors import UserError
from fewstep.core.files import read_json

CONFIG = "config.json"


@dataclass(frozen=True)
class Known:
    """Configurations of a teacher's parts as diffusers writes them; empty where a part is missing or unknown.

    net: the denoiser. vae: the autoencoder. scheduler: the one it was trained with.
    """

    net: Mapping[str, Any]
    vae: Mapping[str, Any]
    scheduler: Mapping[str, Any]

    @property
    def feature_width(self) -> int | None:
        """Channels of the encoder's last activations, which `features/autoencoder.py` reads."""
        widths = self.vae.get("block_out_channels") or self.vae.get("encoder_block_out_channels")
        return widths[-1] if widths else None

    @property
    def resolution(self) -> int | None:
        """Side in pixels of the images that the teacher draws."""
        side = self.net.get("sample_size")
        widths = self.vae.get("block_out_channels") or self.vae.get("encoder_block_out_channels")
        if side is None:  # Flux, whose network's configuration has no sample_size
            side = self.vae.get("sample_size")
            return side if isinstance(side, int) else None
        return side << (len(widths) - 1 if widths else 0) if isinstance(side, int) else None

    @property
    def table(self) -> int | None:
        """Number of discrete timesteps in training; None for a rectified flow, whose time is continuous."""
        if not self.scheduler or "FlowMatch" in self.scheduler.get("_class_name", ""):
            return None
        return self.scheduler.get("num_train_timesteps", 1000)


def known_teacher(chain: Chain) -> Known:
    """The configurations of the teacher's parts, from params.yaml, a local folder or the hub's cache."""
    config = chain.train_teacher
    if chain.teacher.train and config is not None:
        vae = {"block_out_channels": config.vae.channels, "latent_channels": config.vae.latent_channels}
        net = {"sample_size": latent_side(chain), "in_channels": config.vae.latent_channels}
        scheduler = new_scheduler()
        return Known(net, vae, {"_class_name": type(scheduler).__name__, **scheduler.config})
    folder = pipeline_folder(chain)
    if folder is None:
        return Known({}, {}, {})
    net_part = family(chain.teacher.backbone).net_part
    files = (f"{net_part}/{CONFIG}", f"vae/{CONFIG}", "scheduler/scheduler_config.json")
    return Known(*(read_json(folder / file) if (folder / file).is_file() else {} for file in files))


def pipeline_folder(chain: Chain) -> Path | None:
    """The teacher's diffusers folder on this machine; None for a single file, or where there is none."""
    if not chain.teacher.load:
        return None
    (where,) = chain.teacher.load
    if is_local(where):
        return Path(where) if (Path(where) / INDEX).is_file() else None
    cached = in_cache(where, chain.import_teacher.revision)
    return cached.parent if cached is not None else None


def companions(chain: Chain) -> int:
    """Number of values in the weights of a teacher's parts beside the denoiser: text encoders, autoencoder.

    From the headers of its files; 0 where it is not a folder on this machine, or a file is wrong.
    """
    folder = pipeline_folder(chain)
    if folder is None:
        return 0
    configurations = Configurations(folder, chain.import_teacher.without)
    wanted, total = chain.import_teacher.variant, 0
    with suppress(UserError):  # which the check of the teacher reports
        adapter = family(chain.teacher.backbone).of(configurations.index.get("_class_name"))
        for part in adapter.networks():
            if part != adapter.net_part and configurations.has(part):
                for file in variants(folder / part).get(variant_of(folder / part, wanted) or PLAIN, []):
                    total += sum(prod(shape) for shape in read_header(file).shapes.values())
    return total


def in_cache(repository: str, revision: str | None) -> Path | None:
    """The pipeline's index of a hub repository in the cache, at this revision; None where it is not there."""
    cached = try_to_load_from_cache(repository, INDEX, revision=revision)
    return Path(cached) if isinstance(cached, str) else None


def is_local(where: str) -> bool:
    """Whether `teacher.load` names a place on this machine rather than a hub repository."""
    return Path(where).exists() or where.startswith((".", "/"))


def latent_side(chain: Chain) -> int:
    """Height and width of a latent of the teacher that the chain trains."""
    assert chain.train_teacher is not None
    return chain.data.resolution >> (len(chain.train_teacher.vae.channels) - 1)


def design(chain: Chain) -> Design | None:
    """The denoiser that the chain trains; None if an imported one's configuration is missing or unknown."""
    config = chain.train_teacher
    if chain.teacher.train and config is not None:
        vae, text = config.vae, config.text
        make = partial(new_net, config.net, latent_side(chain), vae.latent_channels, text.width)
        return Design(chain.teacher.backbone, make, text.length)
    folder = pipeline_folder(chain)
    if folder is None:
        return None
    kind = family(chain.teacher.backbone)
    file = folder / kind.net_part / CONFIG
    if not file.is_file() or read_json(file).get("_class_name") != kind.net_class:
        return None
    return Design(
        chain.teacher.backbone, partial(configured, kind.net_class, file), pipeline=class_in(folder)
    )


def configured(net_class: str, file: Path) -> Any:
    """An untrained network of diffusers with the configuration in a file."""
    import diffusers

    return getattr(diffusers, net_class).from_config(read_json(file))


@dataclass(frozen=True)
class Sizes:
    """Numbers of values. latent: of one image. prompt: of its conditions."""

    latent: int
    prompt: int


def sizes(denoiser: Design) -> Sizes:
    """Sizes of what a denoiser takes, counted on the meta device, where tensors take no memory."""
    from fewstep.diffusion.denoiser import Prediction
    from fewstep.diffusion.schedules import RectifiedFlow

    with torch.device("meta"):
        net: Any = denoiser.make()
        adapter = denoiser.kind({}, RectifiedFlow(), Prediction.FLOW)
        conditions = adapter.example_conditions(net, 1, denoiser.length) or {}
    side = net.config.get("sample_size") or 0
    return Sizes(
        latent=net.config.in_channels * side**2,
        prompt=sum(value.numel() for value in conditions.values()),
    )
