"""Networks on the rectified flow and on a table of two entries."""

from collections.abc import Callable
from typing import Any

import numpy as np

from fewstep.backbones.model import Model
from fewstep.diffusion.schedules import DiscreteVP, RectifiedFlow


def on_a_path(namespace: Any) -> Model:
    """What `model` makes, as a model that can be put on another path."""
    return Model("model", namespace.net, namespace.denoiser, None, namespace.sampling)


TABLE = DiscreteVP((0.9, 0.2))
ANGLES = np.array([0.0, np.arccos(np.sqrt(0.9)), np.arccos(np.sqrt(0.2))])
"""Of its knots 0, 1/2 and 1. The rectified flow reaches the last angle at t = 2/3."""
LAST = {RectifiedFlow(): 1.0, TABLE: 2 / 3}


def flow_network(schedule: Any, k: Any, slope: float, end: float) -> Callable[..., np.ndarray]:
    """`k x + slope time + end r` of a network that predicts velocities, in its own x and times."""

    def own_time(t: np.ndarray) -> np.ndarray:
        if schedule != TABLE:
            return 1000 * t
        return np.maximum(2 * np.interp(np.arctan2(t, 1 - t), ANGLES, [0, 0.5, 1]) - 1, 0)

    def velocity(x: np.ndarray, t: np.ndarray, r: np.ndarray) -> np.ndarray:
        own_x = x / np.hypot(1 - t, t) if schedule == TABLE else x
        return k * own_x + slope * own_time(t) + end * own_time(r) / 1000

    return velocity
