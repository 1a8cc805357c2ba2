"""The noise schedule that a diffusers scheduler's configuration describes, whatever its class."""

from pathlib import Path

import diffusers
import numpy as np
import pytest

from fewstep.backbones.configurations import SCHEDULER_CONFIG
from fewstep.backbones.schedulers import VP_SCHEDULERS, schedule_of
from fewstep.core.files import read_json
from fewstep.diffusion.denoiser import Prediction
from fewstep.diffusion.schedules import DiscreteVP, RectifiedFlow

SETTINGS = {"beta_start": 0.001, "beta_end": 0.011, "beta_schedule": "linear", "prediction_type": "sample"}


def betas(schedule: object) -> np.ndarray:
    """The table of betas that a discrete schedule is made of."""
    assert isinstance(schedule, DiscreteVP)
    kept = np.array([1.0, *schedule.alphas_cumprod])
    return 1 - kept[1:] / kept[:-1]


@pytest.mark.parametrize("name", VP_SCHEDULERS)
def test_a_saved_schedule_is_read(name: str, tmp_path: Path) -> None:
    kind = getattr(diffusers, name)
    try:
        scheduler = kind(**SETTINGS)
    except ImportError as error:  # DPMSolverSDEScheduler needs torchsde
        pytest.skip(str(error))
    scheduler.save_pretrained(tmp_path)
    schedule, prediction = schedule_of(read_json(tmp_path / SCHEDULER_CONFIG))
    assert prediction is Prediction.SAMPLE
    np.testing.assert_allclose(betas(schedule), np.linspace(0.001, 0.011, 1000), rtol=1e-3)


@pytest.mark.parametrize(
    ("name", "first", "last"), [("DDIMScheduler", 1e-4, 0.02), ("KDPM2DiscreteScheduler", 0.00085, 0.012)]
)
def test_gaps_are_filled_with_the_defaults_of_the_class(name: str, first: float, last: float) -> None:
    """As the stock pipeline fills them: the classes have different ones."""
    schedule, prediction = schedule_of({"_class_name": name, "beta_schedule": "linear"})
    assert prediction is Prediction.EPSILON
    np.testing.assert_allclose(betas(schedule), np.linspace(first, last, 1000), rtol=1e-3)


def test_a_rectified_flow_has_no_table(tmp_path: Path) -> None:
    diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0).save_pretrained(tmp_path)
    schedule, prediction = schedule_of(read_json(tmp_path / SCHEDULER_CONFIG))
    assert isinstance(schedule, RectifiedFlow) and prediction is Prediction.FLOW
