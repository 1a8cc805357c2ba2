"""The loss of the method `reflow`."""

from types import ModuleType

import numpy as np
import pytest

from fewstep.core.keyed import Key
from fewstep.diffusion.denoiser import Prediction
from fewstep.diffusion.schedules import RectifiedFlow
from fewstep.methods import reflow
from tests.formulas.common import BATCH, END, SIZE, TRAINING, Scaled, context, losses, model, samples

MODULE = reflow


def check(module: ModuleType) -> None:
    """Liu et al. 2022, eq. 1, and Lee et al. 2024: times of density `e^{4t} + e^{4(1 - t)}`, pseudo-Huber."""
    pairs, _ = samples()
    x_0, eps = pairs.x_0.numpy(), pairs.eps.numpy()
    r = Key(0, "model/times").uniform(range(BATCH), 2)
    s = np.log(1 + r[:, :1] * (np.exp(4) - 1)) / 4
    for loss in ("plain", "improved"):
        config = module.Config.model_validate({"from": "teacher", "loss": loss, "training": TRAINING})
        student = model(Scaled(0.3, slope=2e-4), Prediction.FLOW, RectifiedFlow())
        terms = losses(module.Reflow(config, context(), student))
        t = r[:, :1] if loss == "plain" else np.where(r[:, 1:] < 0.5, s, 1 - s)
        t = np.clip(t, 1e-5, 1 - 1e-5)
        error = 0.3 * ((1 - t) * x_0 + t * eps) + (0.2 + END) * t - (eps - x_0)
        c = 0.00054 * SIZE
        huber = (np.sqrt((error**2).sum(1) + c**2) - c).mean() / SIZE
        expected = (error**2).mean() if loss == "plain" else huber
        assert terms == {"velocity": pytest.approx(expected, rel=1e-5)}


MUTATIONS = [
    ("- (pairs.eps - pairs.x_0)", "+ (pairs.eps - pairs.x_0)"),
    ("torch.lerp(pairs.x_0, pairs.eps,", "torch.lerp(pairs.eps, pairs.x_0,"),
    ("denoise, x_t, t, t,", "denoise, x_t, 1 - t, t,"),
    ("denoise, x_t, t, t,", "denoise, x_t, t, 1 - t,"),
    ("conditions).velocity", "conditions).eps"),
    ('Times.U_SHAPED if self.config.loss == "improved"', 'Times.U_SHAPED if self.config.loss == "plain"'),
    ('pseudo_huber(error) if self.config.loss == "improved"', "pseudo_huber(error) if False"),
    ("- c).mean() / dim", "- c).mean()"),
    ("c = HUBER * dim", "c = HUBER * 100 * dim"),
    ("c**2).sqrt() - c)", "c**2).sqrt())"),
]  # fmt: skip
