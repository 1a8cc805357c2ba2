"""Training of the small teacher: text encoder and U-Net, v-prediction on latents (Salimans & Ho 2022)."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import mse_loss

from fewstep.backbones.sd_new import NewStableDiffusion
from fewstep.config.teacher import TrainTeacherConfig
from fewstep.core.hardware import device, upload
from fewstep.core.keyed import Key
from fewstep.data.latents import Latent
from fewstep.data.stream import Stream
from fewstep.diffusion.denoiser import Denoiser, Estimate, expand_like, from_estimate
from fewstep.diffusion.solvers import Solver, solve, trailing
from fewstep.training.method import Group, Method, Rows

PREVIEWED = 8
WORDS = 64  # at the start of a caption, to which word_dropout applies


@dataclass(frozen=True)
class Batch:
    """x_0, eps `[B, C, h, w]`; t `[B]`; tokens `[B, L]`."""

    x_0: Tensor
    eps: Tensor
    t: Tensor
    tokens: Tensor


class Teacher(Method):
    """t stratified over the batch, uniform at noise_bias = 1; unweighted v-error; caption dropout."""

    def __init__(
        self, backbone: NewStableDiffusion, config: TrainTeacherConfig, latents: Stream[Latent], seed: int
    ) -> None:
        self.backbone, self.config, self.latents = backbone, config, latents
        self.noise, self.times = Key(seed, "teacher/noise"), Key(seed, "teacher/times")
        # Not `teacher/dropout`, which is the training loop's: dropout inside the network.
        self.words, self.previewed = Key(seed, "teacher/words"), Key(seed, "teacher/preview")
        self.training = config.training
        modules = {"text_encoder": backbone.text_encoder, "net": backbone.net}
        self.groups = {"teacher": Group(modules, config.training)}

    def batch(self, rows: Rows) -> Batch:
        samples = self.latents.rows(rows.positions)
        x_0 = torch.stack([sample.latent for sample in samples])
        draws = self.words.uniform(rows.positions, 1 + WORDS)
        captions = [self.thinned(sample.caption, draw) for sample, draw in zip(samples, draws, strict=True)]
        eps = torch.from_numpy(self.noise.normal(rows.positions, x_0.shape[1:]))
        uniform = self.times.stratified(rows.positions, self.config.training.batch_size)
        t = torch.from_numpy(uniform ** (1 / self.config.noise_bias))
        return Batch(*(upload(v) for v in (x_0, eps, t, self.backbone.tokens(captions))))

    def thinned(self, caption: str, draw: np.ndarray) -> str:
        """The caption with some or all of its words dropped; draw: uniform `[1 + WORDS]` in [0, 1)."""
        if draw[0] < self.config.caption_dropout:
            return ""
        kept = draw[1:] >= self.config.word_dropout
        return " ".join(word for i, word in enumerate(caption.split()) if i >= WORDS or kept[i])

    def preview(self) -> Tensor:
        """Images of the current network, from the same noise and captions each time."""
        samples = self.latents.rows(range(PREVIEWED))
        noise = torch.from_numpy(self.previewed.normal(range(PREVIEWED), samples[0].latent.shape))
        backbone, schedule = self.backbone, self.backbone.schedule
        network = backbone.network(backbone.net)
        denoiser = Denoiser(network, schedule, backbone.prediction, schedule)
        conditions = backbone.encode_prompts([sample.caption for sample in samples])
        return backbone.decode(
            solve(Solver.DPM_SOLVER_PP_2M, denoiser, noise.to(device()), trailing(8), conditions, schedule)
        )

    def losses(self, group: str, batch: Batch, step: int) -> dict[str, Tensor]:
        schedule, prediction = self.backbone.schedule, self.backbone.prediction
        alpha, sigma = schedule.alpha_sigma(batch.t)
        x_t = expand_like(alpha, batch.x_0) * batch.x_0 + expand_like(sigma, batch.eps) * batch.eps
        text = self.backbone.text_encoder(batch.tokens).last_hidden_state
        network = self.backbone.network(self.backbone.net)
        raw = network(x_t, schedule.network_time(batch.t).float(), {"text": text})
        target = from_estimate(Estimate(batch.x_0, batch.eps), alpha, sigma, prediction)
        return {str(prediction): mse_loss(raw.float(), target)}
