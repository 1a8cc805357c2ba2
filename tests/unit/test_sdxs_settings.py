"""Settings of SDXS: what is refused, its two schedules, and when it needs a feature network."""

from typing import Any

import pytest

from fewstep.methods import sdxs

RATES = {"learning_rate": 0.1}
TRAINING = RATES | {"steps": 500, "batch_size": 8}
VALUES = {"method": "sdxs", "from": "teacher", "fake": RATES, "training": TRAINING}
GAN = {"optimizer": RATES}


def config_of(**more: Any) -> sdxs.Config:
    return sdxs.Config.model_validate(VALUES | more)


def test_alpha_and_lambda_change_linearly_after_the_warm_up() -> None:
    training = TRAINING | {"steps": 15}
    config = config_of(training=training, warmup_steps=4, alpha=(0.9, 0.4), lambda_fm=(2.0, 0.0))
    assert config.at(0) == config.at(4) == (0.9, 2.0)
    assert config.at(9) == pytest.approx((0.65, 1.0))
    assert config.at(14) == (0.4, 0.0)


def test_what_needs_a_feature_network() -> None:
    assert config_of().needs_feature_maps
    assert not config_of(lambda_fm=(0, 0)).needs_feature_maps
    assert config_of(lambda_fm=(0, 0), gan=GAN).needs_feature_maps


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"steps": 2}, "steps"),
        ({"data": "encoded"}, "learns from triplets alone"),
        ({"guidance": (2.0, 4.0)}, "guidance"),
        ({"warmup_steps": 500}, "warmup_steps = 500: has to be below training.steps = 500"),
        ({"warmup_steps": 5, "lambda_fm": (0, 1)}, "has no loss where lambda_fm starts at 0"),
        ({"alpha": (1.0, 0.1), "earliest": 0.1}, "alpha = 0.1: leaves no times above earliest = 0.1"),
        ({"alpha": (1.5, 0.5)}, "less than or equal to 1"),
        ({"lambda_fm": (1.0, -0.5)}, "greater than or equal to 0"),
        ({"warmup_steps": 5, "gan": GAN | {"from_step": 4}}, "has to be in \\[5, 499\\]"),
        ({"gan": GAN | {"from_step": 500}}, "gan.from_step = 500"),
        ({"gan": {}}, "optimizer"),
    ],
)
def test_impossible_settings_are_refused(more: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        config_of(**more)
