"""Stable Diffusion 1.x and 2.x: AutoencoderKL latents, CLIP text, UNet2DConditionModel."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from diffusers import AutoencoderKL, UNet2DConditionModel
from torch import Tensor, nn
from transformers import CLIPTextModel, CLIPTokenizer

from fewstep.diffusion.denoiser import Conditions, Network, Prediction
from fewstep.diffusion.schedules import Schedule, schedule_facts, schedule_from_facts
from fewstep.errors import UserError


class StableDiffusion:
    """See `base.Backbone`. Conditions: `text [B, L, D]`, the text encoder's last hidden state."""

    def __init__(
        self,
        net: UNet2DConditionModel,
        vae: AutoencoderKL,
        text_encoder: CLIPTextModel,
        tokenizer: CLIPTokenizer,
        schedule: Schedule,
        prediction: Prediction,
    ) -> None:
        self.net, self.vae, self.text_encoder, self.tokenizer = net, vae, text_encoder, tokenizer
        self.schedule, self.prediction = schedule, prediction
        side = net.config.sample_size
        self.latent_shape = (net.config.in_channels, side, side)

    def modules(self) -> Sequence[nn.Module]:
        return self.net, self.vae, self.text_encoder

    def tokens(self, prompts: Sequence[str]) -> Tensor:
        """Token ids `[B, L]`, padded to and cut at the text encoder's length."""
        encoded = self.tokenizer(list(prompts), padding="max_length", truncation=True, return_tensors="pt")
        return encoded.input_ids.to(self.text_encoder.device)

    def encode_prompts(self, prompts: Sequence[str]) -> Conditions:
        return {"text": self.text_encoder(self.tokens(prompts)).last_hidden_state.float()}

    def encode(self, pictures: Tensor) -> Tensor:
        return self.vae.encode(pictures).latent_dist.mean.float() * self.vae.config.scaling_factor

    def decode(self, latents: Tensor) -> Tensor:
        return self.vae.decode(latents / self.vae.config.scaling_factor).sample.float()

    def network(self, net: nn.Module) -> Network:
        def run(x: Tensor, time: Tensor, conditions: Conditions) -> Tensor:
            raw: Tensor = net(x, time, conditions["text"], return_dict=False)[0]
            return raw

        return run

    def load_net(self, folder: Path) -> UNet2DConditionModel:
        return UNet2DConditionModel.from_pretrained(folder, local_files_only=True)

    def save_net(self, net: nn.Module, folder: Path) -> None:
        assert isinstance(net, UNet2DConditionModel)
        net.save_pretrained(folder)
        forget_origin(folder)


def open_teacher(folder: Path, facts: Mapping[str, Any]) -> StableDiffusion:
    """Load a pipeline folder as diffusers writes it; `facts` as in the teacher's manifest."""
    try:
        return StableDiffusion(
            UNet2DConditionModel.from_pretrained(folder / "unet", local_files_only=True),
            AutoencoderKL.from_pretrained(folder / "vae", local_files_only=True),
            CLIPTextModel.from_pretrained(folder / "text_encoder", local_files_only=True),
            CLIPTokenizer.from_pretrained(folder / "tokenizer", local_files_only=True),
            schedule_from_facts(facts["schedule"]),
            Prediction(facts["prediction"]),
        )
    except (OSError, ValueError, KeyError) as error:
        raise UserError(f"{folder}: not a Stable Diffusion pipeline folder: {error}") from error


def forget_origin(folder: Path, name: str = "config.json") -> None:
    """Take the path that diffusers notes in its JSON out again: hashed files name no place."""
    path = folder / name
    config = json.loads(path.read_text())
    config.pop("_name_or_path", None)
    path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")


def teacher_facts(backbone: StableDiffusion) -> dict[str, Any]:
    """What a teacher's manifest says of it."""
    return {
        "backbone": "sd",
        "schedule": schedule_facts(backbone.schedule),
        "prediction": str(backbone.prediction),
        "scaling_factor": backbone.vae.config.scaling_factor,
        "parameters": sum(p.numel() for p in backbone.net.parameters()),
    }
