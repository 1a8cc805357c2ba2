"""Adversarial losses."""

from types import ModuleType

import numpy as np
import pytest
import torch

from fewstep.losses import adversarial

MODULE = adversarial


def check(module: ModuleType) -> None:
    """Each paper's loss in terms of D or of its logit, and the optimal discriminators' values."""
    generator = np.random.default_rng(0)
    real, drawn = (generator.standard_normal((5, 1, 2, 2)) for _ in range(2))
    d_real, d_drawn = (1 / (1 + np.exp(-logit)) for logit in (real, drawn))
    cross_entropy = -np.log(d_real).mean() - np.log(1 - d_drawn).mean()
    expected = {
        "lsgan": (((real - 1) ** 2).mean() / 2 + (drawn**2).mean() / 2, ((drawn - 1) ** 2).mean() / 2),
        "hinge": (np.maximum(0, 1 - real).mean() + np.maximum(0, 1 + drawn).mean(), -drawn.mean()),
        "wgan": (drawn.mean() - real.mean(), -drawn.mean()),
        "non_saturating": (cross_entropy, -np.log(d_drawn).mean()),
        "bce": (cross_entropy, np.log(1 - d_drawn).mean()),
    }
    assert module.LOSSES.keys() == expected.keys()
    for kind, (critic, student) in expected.items():
        loss = module.LOSSES[kind]
        assert float(loss.discriminator(torch.from_numpy(real), torch.from_numpy(drawn))) == pytest.approx(
            critic
        )
        assert float(loss.generator(torch.from_numpy(drawn))) == pytest.approx(student)
        head = torch.nn.Linear(3, 1)
        weight = head.weight.detach().clone()
        module.clip_critic(kind, head)
        clipped = weight.clamp(-0.01, 0.01) if kind == "wgan" else weight
        assert torch.equal(head.weight.detach(), clipped)


MUTATIONS = [
    ("(real - 1).square().mean() + drawn.square()", "(real - 1).square().mean() + (drawn + 1).square()"),
    ("lambda drawn: 0.5 * (drawn - 1)", "lambda drawn: (drawn - 1)"),
    ("relu(1 - real).mean() + relu(1 + drawn)", "relu(1 - real).mean() + relu(1 - drawn)"),
    ("drawn.mean() - real.mean()", "real.mean() - drawn.mean()"),
    ("lambda drawn: softplus(-drawn).mean()", "lambda drawn: -softplus(drawn).mean()"),
    ("lambda drawn: -softplus(drawn).mean()", "lambda drawn: softplus(-drawn).mean()"),
    ('kind == "wgan"', 'kind == "hinge"'),
    ("WGAN_BOUND = 0.01", "WGAN_BOUND = 0.1"),
]
