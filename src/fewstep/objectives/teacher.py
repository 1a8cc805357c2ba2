"""The small teacher itself: text encoder and U-Net, v-prediction on latents (Salimans & Ho 2022)."""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import mse_loss

from fewstep.backbones.sd import StableDiffusion
from fewstep.config.teacher import TrainTeacherConfig
from fewstep.data.latents import Latent
from fewstep.data.stream import Stream
from fewstep.diffusion.denoiser import Estimate, along, from_estimate
from fewstep.hardware import device
from fewstep.keyed import Key
from fewstep.training.method import Method, Player, Rows


@dataclass(frozen=True)
class Batch:
    """x_0, eps `[B, C, h, w]`; t `[B]`; tokens `[B, L]`."""

    x_0: Tensor
    eps: Tensor
    t: Tensor
    tokens: Tensor


class Teacher(Method):
    """Uniform t, unweighted v-error, captions dropped now and then for guidance."""

    def __init__(
        self, backbone: StableDiffusion, config: TrainTeacherConfig, latents: Stream[Latent], seed: int
    ) -> None:
        self.backbone, self.config, self.latents = backbone, config, latents
        self.noise, self.draws = Key(seed, "teacher/noise"), Key(seed, "teacher/draws")
        self.player = Player({"text_encoder": backbone.text_encoder, "net": backbone.net}, config.training)
        self.players = {"teacher": self.player}

    def batch(self, rows: Rows) -> Batch:
        samples = self.latents.rows(rows.positions)
        x_0 = torch.stack([sample.latent for sample in samples])
        draws = self.draws.uniform(rows.positions, 2)
        captions = [
            "" if draw < self.config.caption_dropout else sample.caption
            for sample, draw in zip(samples, draws[:, 1], strict=True)
        ]
        eps = torch.from_numpy(self.noise.normal(rows.positions, x_0.shape[1:]))
        t = torch.from_numpy(draws[:, 0])
        return Batch(*(v.to(device()) for v in (x_0, eps, t, self.backbone.tokens(captions))))

    def losses(self, player: str, batch: Batch) -> dict[str, Tensor]:
        schedule, prediction = self.backbone.schedule, self.backbone.prediction
        alpha, sigma = schedule.alpha_sigma(batch.t)
        x_t = along(alpha, batch.x_0) * batch.x_0 + along(sigma, batch.eps) * batch.eps
        text = self.player.modules["text_encoder"](batch.tokens).last_hidden_state
        network = self.backbone.network(self.player.modules["net"])
        raw = network(x_t, schedule.network_time(batch.t).float(), {"text": text})
        target = from_estimate(Estimate(batch.x_0, batch.eps), alpha, sigma, prediction)
        return {str(prediction): mse_loss(raw.float(), target)}
