"""Durations of a chain's repeated operations: measured in measuring.py, multiplied in forecast.py."""

from collections.abc import Callable
from dataclasses import dataclass

from fewstep.config.sampling import SamplingConfig


@dataclass(frozen=True)
class Rates:
    """Seconds of every operation that a chain repeats. None: unknown.

    start, open: to start a stage's process, without and with the teacher's pipeline. prepare, read: per
    image. step: per step of a training, by its name in the plan. save: to write its state to disk. teacher,
    student: per solver step of an image, with the model's guidance; student by the model's name. prompt: to
    encode a prompt. encode, decode, features: per image. share: of the evaluations that a model would have if
    guidance applied in each step, those that it has in the guidance interval.
    """

    start: float
    open: float
    prepare: float
    read: float
    step: dict[str, float | None]
    save: dict[str, float]
    teacher: float | None
    student: dict[str, float | None]
    prompt: float
    encode: float
    decode: float
    features: float
    share: Callable[[str, SamplingConfig], float] = lambda model, sampling: 1.0
