"""Student, teacher and fake whose estimates are multiples of x, for the methods on `students/scores.py`."""

from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from fewstep.backbones.model import Model
from fewstep.core.keyed import Key
from fewstep.diffusion.denoiser import END_TIME, Conditions, Denoiser, Prediction
from fewstep.diffusion.sampling import STUDENTS, TEACHERS
from fewstep.diffusion.schedules import Cosine
from fewstep.training.method import Rows

BATCH, SHAPE = 16, (2, 1, 3)
STUDENT, FAKE, UNCONDITIONAL, END = 0.7, 0.25, 0.3, 0.1
TRAINING = {"steps": 10, "batch_size": BATCH, "learning_rate": 1.0}
ROWS = range(BATCH)


class Multiple(nn.Module):
    """`x_0 = (k + scale) x + END end`, scale a condition `[B, 1]`, end that of the step."""

    def __init__(self, k: float) -> None:
        super().__init__()
        self.k = nn.Parameter(torch.tensor(k, dtype=torch.float64))

    def forward(self, x: Tensor, time: Tensor, conditions: Conditions) -> Tensor:
        scale = conditions.get("scale", torch.zeros(len(x), 1)).reshape(-1, 1, 1, 1)
        end = conditions.get(END_TIME, torch.zeros(len(x))).reshape(-1, 1, 1, 1)
        return (self.k + scale) * x + END * end / 1000


def drawn(use: str) -> np.ndarray:
    """The method's normal numbers for this use."""
    return Key(0, f"model/scores/{use}").normal(ROWS, SHAPE).astype(np.float64)


def uniform(use: str, columns: int) -> np.ndarray:
    """The method's uniform numbers, a list of columns that each broadcast to images."""
    return Key(0, f"model/scores/{use}").uniform(ROWS, columns).T.reshape(columns, -1, 1, 1, 1)


def cosine(t: Any) -> tuple[Any, Any]:
    """alpha, sigma."""
    return np.cos(np.pi * t / 2), np.sin(np.pi * t / 2)


X_0 = np.random.default_rng(0).standard_normal((BATCH, *SHAPE))
SCALE = np.random.default_rng(1).uniform(size=(BATCH, 1))
WIDE = SCALE.reshape(-1, 1, 1, 1)
"""The teacher's conditional estimate is `WIDE x`."""


class Unprompted(nn.Module):
    """The student, which takes no prompt."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor, time: Tensor, conditions: Conditions) -> Tensor:
        return self.net(x, time, {END_TIME: conditions[END_TIME]})


def method_of(module: ModuleType, values: dict[str, Any], student: Any = None) -> Any:
    """The method on these networks, with its fake already apart from the teacher."""
    net = Multiple(0.0)
    path = Cosine()
    teacher = Model("teacher", net, Denoiser(net, path, Prediction.SAMPLE, path), None, TEACHERS)
    own = Unprompted(Multiple(STUDENT)) if student is None else student
    denoiser = Denoiser(own, path, Prediction.SAMPLE, path, (END_TIME,))
    context = SimpleNamespace(
        teacher=teacher,
        start=teacher,
        key=lambda use: Key(0, f"model/{use}"),
        guidance_interval=None,
        clean_batch=lambda positions: (
            torch.from_numpy(X_0)[: len(positions)],
            {"scale": torch.from_numpy(SCALE)[: len(positions)]},
        ),
        unconditional=lambda: {"scale": torch.full((1, 1), UNCONDITIONAL, dtype=torch.float64)},
        backbone=SimpleNamespace(network=lambda net, inputs: net),
    )
    required = {"method": "any", "from": "teacher", "training": TRAINING, "fake": {"learning_rate": 1.0}}
    config = module.Config.model_validate(required | values)
    method = module.METHOD(
        config, context, module.student_of(config, Model("student", own, denoiser, None, STUDENTS))
    )
    method.fake.net.k.data.fill_(FAKE)
    return method


def losses(method: Any, group: str, step: int = 0) -> tuple[dict[str, float], float]:
    """The terms of the first batch, and the gradient of their sum in the group's first weight."""
    with torch.no_grad():
        batch = method.prepare(method.batch(Rows(step, ROWS)))
    terms = method.losses(group, batch, step)
    weight = next(method.groups[group].modules["net"].parameters())
    (gradient,) = torch.autograd.grad(sum(terms.values()), weight)
    return {name: float(value.detach()) for name, value in terms.items()}, float(gradient)


def student_input(exits: int, steps: int) -> tuple[np.ndarray, float]:
    """x_t and t of the student's step `exits` of `steps`, by backward simulation on the cosine path."""
    x_t, t = drawn("noise/0"), 1.0
    for j in range(1, exits + 1):
        t = 1 - j / steps
        alpha, sigma = cosine(t)
        x_t = alpha * STUDENT * x_t + sigma * drawn(f"noise/{j}")
    return x_t, t


def exit_of(steps: int, step: int = 0) -> int:
    """The student's step that the training step trains."""
    return int(Key(0, "model/exit").uniform([step])[0, 0] * steps)


def mean_of(x: np.ndarray) -> np.ndarray:
    """Mean absolute value per sample, shaped to divide images."""
    return np.abs(x).mean((1, 2, 3), keepdims=True)
