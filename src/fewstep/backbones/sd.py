"""Stable Diffusion 1.x and 2.x: AutoencoderKL latents, CLIP text, UNet2DConditionModel."""

import json
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from diffusers import UNet2DConditionModel
from torch import Tensor, nn

from fewstep.diffusion.denoiser import Conditions, Network, Prediction
from fewstep.diffusion.schedules import Schedule, schedule_facts, schedule_from_facts
from fewstep.errors import UserError
from fewstep.hardware import device

if TYPE_CHECKING:
    from diffusers import AutoencoderKL
    from transformers import CLIPTextModel, CLIPTokenizer


class StableDiffusion:
    """See `base.Backbone`. Conditions: `text [B, L, D]`, the text encoder's last hidden state.

    parts: name of a pipeline folder's part -> how to get it. A part is made, put on the device and into
    evaluation mode when it is first used, so a stage holds in memory what it needs and no more.
    """

    def __init__(
        self, parts: Mapping[str, Callable[[], Any]], schedule: Schedule, prediction: Prediction
    ) -> None:
        self._parts = parts
        self.schedule, self.prediction = schedule, prediction

    def _module(self, name: str) -> Any:
        return self._parts[name]().to(device()).eval()

    @cached_property
    def net(self) -> UNet2DConditionModel:
        """The denoising U-Net."""
        return self._module("unet")

    @cached_property
    def vae(self) -> "AutoencoderKL":
        """The autoencoder."""
        return self._module("vae")

    @cached_property
    def text_encoder(self) -> "CLIPTextModel":
        """The text transformer."""
        return self._module("text_encoder")

    @cached_property
    def tokenizer(self) -> "CLIPTokenizer":
        """The byte-pair tokenizer."""
        return self._parts["tokenizer"]()

    @property
    def latent_shape(self) -> tuple[int, ...]:
        config = self.net.config
        return config.in_channels, config.sample_size, config.sample_size

    def tokens(self, prompts: Sequence[str]) -> Tensor:
        """Token ids `[B, L]`, padded to and cut at the text encoder's length."""
        encoded = self.tokenizer(list(prompts), padding="max_length", truncation=True, return_tensors="pt")
        return encoded.input_ids.to(device())

    def encode_prompts(self, prompts: Sequence[str]) -> Conditions:
        return {"text": self.text_encoder(self.tokens(prompts)).last_hidden_state.float()}

    def encode(self, pictures: Tensor) -> Tensor:
        return self.vae.encode(pictures).latent_dist.mean.float() * self.vae.config.scaling_factor

    def decode(self, latents: Tensor) -> Tensor:
        return self.vae.decode(latents / self.vae.config.scaling_factor).sample.float()

    def decoder(self) -> nn.Module:
        return self.vae

    def network(self, net: nn.Module) -> Network:
        def run(x: Tensor, time: Tensor, conditions: Conditions) -> Tensor:
            raw: Tensor = net(x, time, conditions["text"], return_dict=False)[0]
            return raw

        return run

    def load_net(self, folder: Path) -> UNet2DConditionModel:
        return load(UNet2DConditionModel, folder).to(device()).eval()

    def save_net(self, net: nn.Module, folder: Path) -> None:
        assert isinstance(net, UNet2DConditionModel)
        net.save_pretrained(folder)
        forget_origin(folder)


def load(kind: Any, folder: Path) -> Any:
    """`kind.from_pretrained`, from this folder alone. Raises UserError naming the folder."""
    try:
        return kind.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError, KeyError) as error:
        raise UserError(f"{folder}: cannot be loaded as {kind.__name__}: {error}") from error


def load_transformer(name: str, folder: Path) -> Any:
    """The same for a class of transformers, whose import takes seconds and is put off until here."""
    import transformers

    return load(getattr(transformers, name), folder)


def load_vae(folder: Path) -> "AutoencoderKL":
    """The autoencoder of a pipeline folder."""
    from diffusers import AutoencoderKL

    return load(AutoencoderKL, folder)


def open_teacher(folder: Path, facts: Mapping[str, Any]) -> StableDiffusion:
    """A pipeline folder as diffusers writes it; `facts` as in the teacher's manifest."""
    parts = {
        "unet": partial(load, UNet2DConditionModel, folder / "unet"),
        "vae": partial(load_vae, folder / "vae"),
        "text_encoder": partial(load_transformer, "CLIPTextModel", folder / "text_encoder"),
        "tokenizer": partial(load_transformer, "CLIPTokenizer", folder / "tokenizer"),
    }
    return StableDiffusion(parts, schedule_from_facts(facts["schedule"]), Prediction(facts["prediction"]))


def teacher_facts(backbone: StableDiffusion) -> dict[str, Any]:
    """What a teacher's manifest says of it."""
    return {
        "backbone": "sd",
        "schedule": schedule_facts(backbone.schedule),
        "prediction": str(backbone.prediction),
        "scaling_factor": backbone.vae.config.scaling_factor,
        "parameters": sum(p.numel() for p in backbone.net.parameters()),
    }


def forget_origin(folder: Path, name: str = "config.json") -> None:
    """Take the path that diffusers notes in its JSON out again: hashed files name no place."""
    path = folder / name
    config = json.loads(path.read_text())
    config.pop("_name_or_path", None)
    path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
