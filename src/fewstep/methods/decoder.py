"""Tiny decoder: an `AutoencoderTiny` of diffusers learns to decode latents as the teacher's decoder does.

SDXS (Song et al. 2024, section 3.1): y is the image that the teacher's decoder makes of the latent z, D_tiny
the small decoder, `d` averages squares of pixels.

    L = mean |d(D_tiny(z)) - d(y)| + w_adversarial L_GAN(D_tiny(z), y) + w_encoder mean (E_tiny(y) - z)^2

The first term keeps colours and places, the discriminator on full images the detail. The geometry is TAESD's
(Bohan 2023): 1,222,531 parameters for the latents of Stable Diffusion. The small encoder is trained as well,
so that stock pipelines can also encode with the result.

An entry with `load` trains nothing: its decoder is one of the user's (students/decoder.py).
"""

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.nn.functional import avg_pool2d, mse_loss

from fewstep.backbones.model import Model
from fewstep.backbones.pipeline import DiffusersBackbone
from fewstep.backbones.protocol import Backbone
from fewstep.config.base import Place
from fewstep.config.training import OptimizerConfig, StudentTrainingConfig
from fewstep.core.errors import UserError
from fewstep.core.hardware import device, upload
from fewstep.core.keyed import Key
from fewstep.data.noise import fresh_noise, noise_of
from fewstep.diffusion.denoiser import Conditions, expand_like
from fewstep.diffusion.sampling import Sampling
from fewstep.diffusion.solvers import Fresh
from fewstep.features.network import FeatureNetwork
from fewstep.losses.adversarial import LOSSES, Kind, clip_critic
from fewstep.sampling.draw import DECODER, Sampler
from fewstep.students.config import Decode, ImageLoss, MethodConfig
from fewstep.students.context import Context
from fewstep.students.method import StudentMethod
from fewstep.training.method import Group, Rows

if TYPE_CHECKING:
    from diffusers import AutoencoderTiny

LOADED = "inputs"
"""Value of `data` where the decoder is not trained: its folder is an input."""
BLOCKS = 3
"""TAESD's residual blocks at each resolution; one at the resolution of the images."""
PATCH, GROUPS = (32, 64, 64), 8
"""Channels of the discriminator's convolutions, each of which halves the resolution; normalized groups."""
Weight = Annotated[float, Field(ge=0)]


class Config(MethodConfig):
    """Parameters of a `decoder` entry: either `training` and what belongs to it, or `load`."""

    learns_from: ClassVar[tuple[str, ...]] = ("triplets", "encoded", LOADED)
    training: StudentTrainingConfig | None = None  # type: ignore[assignment]
    """Null only beside `load`."""
    data: Literal["triplets", "encoded", "inputs"] = "triplets"  # type: ignore[assignment]
    """`inputs` only beside `load`; DVC then runs the stage again when the folder's content changes."""
    load: Place | None = None
    """A folder of diffusers' `AutoencoderTiny`, or its name in `inputs`: this decoder is taken as it is."""
    width: int = Field(64, ge=1)
    """Channels of the decoder and of the encoder."""
    blocks: int = Field(BLOCKS, ge=1)
    """Residual blocks at each resolution but that of the images, which has one."""
    own_share: float = Field(0.5, ge=0, le=1)
    """Share of latents that the start model samples itself. The others are the triplets' end points, or with
    `data: encoded` the encoder's latents of real images."""
    downscale: int = Field(8, ge=1)
    """Side of the squares of pixels whose means are compared; 1: each pixel."""
    adversarial: Kind = "hinge"
    adversarial_weight: Weight = 0.1
    """Weight of the adversarial loss; 0: no discriminator."""
    from_step: int = Field(0, ge=0)
    """First step of the adversarial loss; the discriminator is trained from then on."""
    discriminator: OptimizerConfig | None = None
    """Optimizer of the discriminator; null: that of `training`."""
    encoder_weight: Weight = 1.0
    """Weight of the encoder's error; 0 leaves the encoder untrained."""

    @property
    def trains_denoiser(self) -> bool:
        return False

    @property
    def image_loss(self) -> ImageLoss | None:
        return partial(untrained_terms, self) if self.load is None else None

    def sampling(self, start: Sampling, inputs: Sequence[str]) -> Sampling:
        return start

    @model_validator(mode="after")
    def _trained_or_loaded(self) -> Self:
        if self.load is None:
            if self.data == LOADED:
                raise ValueError(f"data = {LOADED!r}: for a decoder that is not trained; name it in load")
            if self.training is None:
                raise ValueError(f"training is missing; without it, set data: {LOADED} and load")
            return self
        if self.data != LOADED:
            raise ValueError(f"load: nothing is trained, so set data: {LOADED}")
        if unused := sorted(self.model_fields_set - {"from_", "data", "load"}):
            raise ValueError(f"load: nothing is trained, so remove {', '.join(unused)}")
        return self

    @model_validator(mode="after")
    def _trains_a_decoder(self) -> Self:
        if self.lora is not None or self.guidance_embedding:
            raise ValueError("lora, guidance_embedding: the denoiser is not trained; remove them")
        return self


def student_of(config: Config, start: Model) -> Model:
    """The start model; `METHOD` adds the decoder.

    Raises UserError where it should sample, but has no step count.
    """
    if config.load is None and config.own_share > 0 and start.steps is None:
        raise UserError(
            f"own_share: {config.from_} was not made for a number of steps; set own_share: 0, or start from "
            "a student that was"
        )
    return start


@dataclass(frozen=True)
class Batch:
    """z: latents `[B, ...]`; y: the teacher's decoder's images of them; both are completed by `prepare`.

    own: `[B]`, where the start model samples the latent; noise, fresh, conditions: of its samples.
    """

    z: Tensor
    y: Tensor
    own: Tensor
    noise: Tensor
    fresh: Fresh
    conditions: Conditions


class TinyDecoder(StudentMethod):
    """The small decoder and encoder, and a discriminator on images."""

    def __init__(self, config: Config, context: Context, student: Model) -> None:
        tiny, side = tiny_autoencoder(context.backbone, config.width, context.key("weights"), config.blocks)
        if side % config.downscale:
            raise UserError(f"downscale = {config.downscale}: has to divide the images' side, {side} pixels")
        super().__init__(config, context, replace(student, parts={**student.parts, DECODER: tiny}))
        assert config.training is not None
        self.config, self.tiny = config, tiny
        self.groups = {"student": Group({DECODER: tiny}, config.training)}
        self.frozen = (student.net, context.backbone.decoder())
        if config.adversarial_weight > 0:
            self.critic = patch_discriminator(context.key("discriminator"))
            optimizer = config.discriminator or config.training
            self.groups["discriminator"] = Group({"net": self.critic}, optimizer)

    def schedule(self, step: int) -> Sequence[str]:
        return tuple(self.groups) if step >= self.config.from_step else ("student",)

    def batch(self, rows: Rows) -> Batch:
        """Random streams: `own`, which latents the start model samples; `sampled`, their noise."""
        context, positions = self.context, rows.positions
        z, conditions = context.clean_batch(positions)
        uniform = torch.from_numpy(context.key("own").uniform(positions)[:, 0])
        own = upload(uniform < self.config.own_share)
        sampled = context.key("sampled")
        noise = upload(noise_of(sampled, positions, z.shape[1:])).to(z.dtype)
        fresh = fresh_noise(sampled, positions, z.shape[1:], z.device)
        return Batch(z, z, own, noise, fresh, conditions)

    def prepare(self, batch: Batch) -> Batch:
        start, backbone = self.context.start, self.context.backbone
        z = batch.z
        if self.config.own_share > 0:
            assert start.steps is not None
            sampler = Sampler(start, backbone, self.context.sampling)
            sampled = sampler.latents(batch.conditions, batch.noise, start.steps, batch.fresh)
            z = torch.where(expand_like(batch.own, z) > 0, sampled.to(z), z)
        return replace(batch, z=z, y=backbone.decode(z))

    def losses(self, group: str, batch: Batch, step: int) -> dict[str, Tensor]:
        config, y = self.config, batch.y
        x = self.context.backbone.decode(batch.z, self.tiny)
        adversarial = LOSSES[config.adversarial]
        if group == "discriminator":
            return {"discriminator": adversarial.discriminator(self.critic(y), self.critic(x.detach()))}
        critic = self.critic if "discriminator" in self.schedule(step) else None
        return image_terms(config, self.tiny, critic, batch.z, x, y)

    def updated(self, group: str) -> None:
        if group == "discriminator":
            clip_critic(self.config.adversarial, self.critic)


METHOD = TinyDecoder


def image_terms(
    config: Config, tiny: "AutoencoderTiny", critic: nn.Module | None, z: Tensor, x: Tensor, y: Tensor
) -> dict[str, Tensor]:
    """The student's loss for images x of its own and y of the teacher; critic: None before it is used."""
    terms = {"pixels": (avg_pool2d(x, config.downscale) - avg_pool2d(y, config.downscale)).abs().mean()}
    if critic is not None:
        generator = LOSSES[config.adversarial].generator
        terms["adversarial"] = config.adversarial_weight * generator(critic(x))
    if config.encoder_weight > 0:
        terms["encoder"] = config.encoder_weight * mse_loss(tiny.encode(y).latents, z)
    return terms


def untrained_terms(
    config: Config, x: Tensor, target: Tensor, decode: Decode, features: FeatureNetwork | None
) -> dict[str, Tensor]:
    """`image_terms` of the latents x with an untrained decoder and discriminator."""
    z = x.detach()
    with torch.no_grad():
        y = decode(target)
    with z.device:
        tiny = tiny_geometry(z.shape[1], y.shape[-1] // z.shape[-1], config.width, config.blocks)
        critic = patch_discriminator(Key(0, "untrained")).requires_grad_(False)
    return image_terms(config, tiny, critic if config.adversarial_weight > 0 else None, z, decode(z, tiny), y)


def tiny_autoencoder(
    backbone: Backbone, width: int, key: Key, blocks: int = BLOCKS
) -> "tuple[AutoencoderTiny, int]":
    """A small autoencoder for the latents of this family, its weights drawn from `key`; the images' side.

    Raises UserError where the family has no autoencoder of diffusers.
    """
    channels, *_, side = backbone.latent_shape
    zeros = torch.zeros(1, *backbone.latent_shape, device=device())
    with torch.no_grad():
        pixels = backbone.decode(zeros).shape[-1]
    if not isinstance(backbone, DiffusersBackbone) or pixels == side:
        raise UserError("decoder: this teacher has no autoencoder, or one that is not of diffusers")
    torch.manual_seed(key.seed32(0))
    return tiny_geometry(channels, pixels // side, width, blocks), pixels


def tiny_geometry(channels: int, factor: int, width: int, blocks: int = BLOCKS) -> "AutoencoderTiny":
    """TAESD's for latents of `channels` whose side is `factor` times smaller; untrained.

    blocks: residual blocks at each resolution but that of the images.
    """
    # Imported only here: every process that reads the chain's parameters imports this module.
    from diffusers import AutoencoderTiny

    stages = int(math.log2(factor))
    return AutoencoderTiny(
        latent_channels=channels,
        encoder_block_out_channels=(width,) * (stages + 1),
        decoder_block_out_channels=(width,) * (stages + 1),
        num_encoder_blocks=(1, *[blocks] * stages),
        num_decoder_blocks=(*[blocks] * stages, 1),
    )


def patch_discriminator(key: Key) -> nn.Sequential:
    """Maps images `[B, 3, H, W]` to a logit per patch, `[B, 1, H / 8, W / 8]`; weights drawn from `key`.

    A PatchGAN (Isola et al. 2017, section 3.2.2) with group normalization, which does not mix samples.
    """
    torch.manual_seed(key.seed32(0))
    layers: list[nn.Module] = []
    for before, after in itertools.pairwise((3, *PATCH)):
        layers += [nn.Conv2d(before, after, 4, 2, 1), nn.GroupNorm(GROUPS, after), nn.LeakyReLU(0.2)]
    return nn.Sequential(*layers, nn.Conv2d(PATCH[-1], 1, 3, padding=1))
