"""Base class of the families in diffusers: a pipeline folder whose parts are loaded on first use."""

import gc
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property, partial
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
from torch import Tensor, nn

from fewstep.backbones.configurations import INDEX as INDEX
from fewstep.backbones.configurations import SCHEDULER_CONFIG, Configurations, channels, square
from fewstep.backbones.inputs import add_saved_inputs, save_with_inputs, widened, with_inputs
from fewstep.backbones.parts import (
    LEFT_OUT,
    Parts,
    class_in,
    component_names,
    forget_origin,
    load_part,
    parts_of,
)
from fewstep.backbones.schedulers import VP_SCHEDULERS
from fewstep.backbones.schedulers import is_flow as is_flow
from fewstep.backbones.schedulers import schedule_of as schedule_of
from fewstep.core.files import read_json
from fewstep.core.hardware import device, full_precision, to_device
from fewstep.diffusion.denoiser import Conditions, Network, Prediction
from fewstep.diffusion.schedules import DiscreteVP, Schedule
from fewstep.diffusion.solvers import trailing

CLIP_LENGTH = 77
"""Tokens that CLIP's text encoders read."""
ANY_TOKENIZER = ("AutoTokenizer", "PreTrainedTokenizer", "TokenizersBackend")
CLIP_TOKENIZERS = ("CLIPTokenizer", *ANY_TOKENIZER)
T5_TOKENIZERS = ("T5Tokenizer", *ANY_TOKENIZER)


class DiffusersBackbone:
    """The part of `protocol.Backbone` that does not differ between families.

    A part is loaded, moved to the device and put into evaluation mode when it is first used, so a stage holds
    only what it needs in memory. A family implements at least `encode_prompts` and `call`.
    """

    pipeline_class: ClassVar[str]
    """The pipeline in diffusers."""
    pipeline_options: ClassVar[Mapping[str, Any]] = {}
    """Further arguments of its constructor."""
    net_part: ClassVar[str] = "unet"
    """Name of the denoising network's part."""
    net_class: ClassVar[str] = "UNet2DConditionModel"
    """Its class in diffusers."""
    tokenizer_part: ClassVar[str] = "tokenizer"
    """Name of the tokenizer whose text encoder reads the most tokens."""
    lora_targets: Sequence[str] = ("to_q", "to_k", "to_v", "to_out.0")
    vae_class: ClassVar[str] = "AutoencoderKL"
    """The autoencoder's class in diffusers; empty for a family without an autoencoder."""
    text_classes: ClassVar[Mapping[str, tuple[str, ...]]] = {}
    """Further parts, text encoders and tokenizers -> the classes of transformers that they may be."""
    optional_parts: ClassVar[Mapping[str, tuple[str, ...]]] = {}
    """Parts that `import_teacher.without` may name -> parts that are left out with them."""
    schedulers: ClassVar[tuple[str, ...]] = VP_SCHEDULERS
    """Scheduler classes of diffusers that this family supports; see schedulers.py."""
    dynamic_shifting: ClassVar[bool] = False
    """Whether the stock pipeline shifts its times by image size if its scheduler's config asks for it."""
    net_values: ClassVar[Mapping[str, tuple[Any, ...]]] = {}
    """Settings of the denoiser -> allowed values in this family, in addition to those in networks.py."""
    vae_values: ClassVar[Mapping[str, tuple[Any, ...]]] = {"shift_factor": (None, 0.0)}
    """The same for the autoencoder."""
    learned_variance: ClassVar[bool] = False
    """Whether the network may also predict a variance, which the adapter drops."""
    single_file_parts: ClassVar[Mapping[str, str]] = {}
    """Part -> prefix of its weights' names in a single file; empty: this family is read from folders only."""
    settings: Mapping[str, Any] = {}
    """Entries of the pipeline's index other than its parts."""

    def __init__(self, parts: Parts, schedule: Schedule, prediction: Prediction) -> None:
        self.parts, self.schedule, self.prediction = parts, schedule, prediction

    @classmethod
    def of(cls, pipeline: str | None) -> type[Self]:
        """The family's adapter for pipelines of this class; for None or an unknown class, its default."""
        return cls

    @classmethod
    def open(cls, folder: Path) -> Self:
        """Open a teacher's folder, which is a diffusers pipeline folder."""
        parts = parts_of(folder)
        scheduler = read_json(folder / "scheduler" / SCHEDULER_CONFIG)
        opened = cls.of(class_in(folder))(parts, *schedule_of(scheduler))
        opened.settings = {k: v for k, v in read_json(folder / INDEX).items() if not isinstance(v, list)}
        return opened

    @classmethod
    def fit(cls, configurations: Configurations) -> Iterator[str]:
        """Faults of parts that do not fit each other, as `configurations.fault` words them."""
        yield from square(configurations, cls.net_part)
        yield from channels(configurations, cls.net_part, variance=cls.learned_variance)

    @classmethod
    def part_classes(cls) -> dict[str, tuple[str, ...]]:
        """Every part of the pipeline that is used -> its allowed classes, without the suffix `Fast`."""
        vae = {"vae": (cls.vae_class,)} if cls.vae_class else {}
        return {"scheduler": cls.schedulers, cls.net_part: (cls.net_class,), **vae, **cls.text_classes}

    @classmethod
    def networks(cls) -> list[str]:
        """Names of the parts that have weights."""
        return [
            name for name in cls.part_classes() if name != "scheduler" and not name.startswith("tokenizer")
        ]

    def module(self, name: str) -> Any:
        """A network, on the device and frozen."""
        return to_device(self.parts[name]()).eval()

    @cached_property
    def net(self) -> Any:
        return self.module(self.net_part)

    @cached_property
    def vae(self) -> Any:
        """The autoencoder."""
        return self.module("vae")

    @cached_property
    def prompter(self) -> Any:
        """The stock pipeline without its denoiser and autoencoder; encodes prompts."""
        import diffusers

        idle = (self.net_part, "vae", "scheduler", *LEFT_OUT)
        parts = {name: None if name in idle else make() for name, make in self.parts.items()}
        kind = getattr(diffusers, self.pipeline_class)
        pipeline = kind(**{name: parts.get(name) for name in component_names(kind)}, **self.pipeline_options)
        return pipeline.to(device())

    @property
    def latent_shape(self) -> tuple[int, ...]:
        config = self.net.config
        return config.in_channels, config.sample_size, config.sample_size

    def times(self, steps: int) -> list[float]:
        """Equally spaced times, rounded to the network's table: stock `trailing` spacing.

        The expression is diffusers', because another one rounds halves differently. For some step counts its
        `arange` has one element too many, which stock schedulers use as a last timestep -1; it is dropped.
        """
        if not isinstance(self.schedule, DiscreteVP):
            return trailing(steps)
        table = len(self.schedule.alphas_cumprod)
        entries = np.round(np.arange(table, 0, -table / steps))[:steps]
        return [*(entries / table).tolist(), 0.0]

    def encode_prompts(self, prompts: Sequence[str]) -> Conditions:
        raise NotImplementedError

    @property
    def stock_call(self) -> dict[str, Any]:
        """Arguments that make the stock pipeline call the network as this adapter does, without guidance."""
        return {"guidance_scale": 0.0}

    def stock_latents(self, pipeline: Any, noise: Tensor, steps: int, **call: Any) -> Tensor:
        """Latents that the stock pipeline samples from this noise; call: its prompt and further arguments."""
        drawn: Tensor = pipeline(
            latents=noise.clone(),
            num_inference_steps=steps,
            output_type="latent",
            **{**self.stock_call, **call},
        ).images
        return drawn

    def stock_prompt(self, conditions: Conditions) -> dict[str, Any]:
        """Conditions as arguments of the stock pipeline, instead of a prompt."""
        return {"prompt_embeds": conditions["text"]}

    @property
    def smallest_latent(self) -> tuple[int, ...]:
        """Shape of the smallest latent that the network takes, at most its default size."""
        count, side, _ = self.latent_shape
        levels = len(self.net.config.get("block_out_channels", [1]))
        side = min(side, max(8, 2 ** (levels - 1)))
        return count, side, side

    @cached_property
    def tokenizer(self) -> Any:
        """The tokenizer that prompt lengths are measured with."""
        return self.parts[self.tokenizer_part]()

    @property
    def prompt_length(self) -> int:
        """Tokens that the text encoder reads; 0 for a family without prompts."""
        return self.tokenizer.model_max_length

    def too_long(self, prompts: Sequence[str]) -> int:
        length = self.prompt_length
        if not length:
            return 0
        tokens = self.tokenizer(list(prompts), verbose=False).input_ids
        return sum(len(ids) > length for ids in tokens)

    def unconditional(self, negative_prompt: str = "") -> Conditions:
        return self.encode_prompts([negative_prompt])

    def release_encoders(self) -> None:
        self.__dict__.pop("prompter", None)
        gc.collect()  # pipelines and networks refer to each other

    def encode(self, images: Tensor) -> Tensor:
        with full_precision(self.vae.config.get("force_upcast", False)):
            latents = self.vae.encode(images).latent_dist.mean.float()
        return (latents - shift(self.vae)) * self.vae.config.scaling_factor

    def decode(self, latents: Tensor, decoder: nn.Module | None = None) -> Tensor:
        vae: Any = self.vae if decoder is None else decoder
        with full_precision(vae.config.get("force_upcast", False)):
            return vae.decode(latents / vae.config.scaling_factor + shift(vae)).sample.float()

    def decoder(self) -> nn.Module:
        return self.vae

    def example_conditions(self, net: Any, batch: int, length: int | None = None) -> Conditions | None:
        """Zeros in the shapes of `encode_prompts`, from the net's configuration alone; see checks/memory.py.

        length: tokens of a prompt; None: the family's default. Returns None if the configuration does not
        determine the shapes.
        """
        return None

    def call(self, net: Any, x: Tensor, time: Tensor, conditions: Conditions) -> Tensor:
        """The network's output `[B, ...]` for x `[B, ...]` at `schedule.network_time(t)` `[B]`."""
        raise NotImplementedError

    def network(self, net: nn.Module, inputs: Sequence[str] = ()) -> Network:
        network = partial(self.call, net)
        return with_inputs(network, net, inputs) if inputs else network

    def with_input(self, net: nn.Module, name: str) -> nn.Module:
        return widened(net)

    def base_net(self, teacher: Path) -> Any:
        return self.load_net(teacher / self.net_part)

    def load_net(self, folder: Path) -> Any:
        net = load_part("diffusers", self.net_class, folder)
        add_saved_inputs(net, folder)
        return to_device(net).eval()

    def save_net(self, net: nn.Module, folder: Path) -> None:
        save_with_inputs(net, folder)
        forget_origin(folder)


def shift(vae: Any) -> float:
    """Mean of an autoencoder's latents before they are scaled."""
    return vae.config.get("shift_factor") or 0.0
