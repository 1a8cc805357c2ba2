"""Optimizer, length and batch size of a training; part of the section of everything that is trained."""

from typing import Literal, Self

from pydantic import Field, model_validator

from fewstep.config.base import Section


class OptimizerConfig(Section):
    """Settings of one optimizer group. A method with several groups has one of these for each."""

    learning_rate: float = Field(gt=0)
    """Peak learning rate."""
    warmup: int = Field(0, ge=0)
    """Steps of linear warm-up: step k of W, counted from 0, has (k + 1) / W of the peak."""
    decay: Literal["constant", "linear", "cosine"] = "cosine"
    """Schedule of the learning rate after warm-up. `linear` and `cosine` reach 0 at step `steps`, one after
    the last step, so that no step has a rate of 0 (as in transformers' `get_scheduler`)."""
    optimizer: Literal["adamw", "adamw_8bit", "muon"] = "adamw"
    """muon: orthogonalised momentum for hidden layers, AdamW for the rest; needs fewer steps. adamw_8bit:
    AdamW with 8-bit states (Dettmers et al. 2022) by bitsandbytes, which must be installed separately."""
    betas: tuple[float, float] = (0.9, 0.999)
    """AdamW's averaging coefficients."""
    weight_decay: float = Field(0.0, ge=0)
    clip: float = Field(1.0, gt=0)
    """Largest gradient norm."""
    ema: float | None = Field(None, gt=0, lt=1)
    """Decay of the weights' exponential moving average, which is then saved as the result; null: none."""


class TrainingConfig(OptimizerConfig):
    """Length and batch size of one training, and the optimizer of its first group.

    Device, processes and precision are settings of the machine (see README).
    """

    steps: int = Field(ge=1)
    """Optimizer steps."""
    batch_size: int = Field(ge=1)
    """Global batch size: samples per step over all processes."""


class StudentTrainingConfig(TrainingConfig):
    """Training of a student, which can be measured against the teacher while it trains."""

    evaluate_every: int | None = Field(None, ge=1)
    """Steps between measurements against the teacher, on fixed prompts and noise samples; null: none."""
    keep: Literal["last", "best"] = "last"
    """Which of the measured states becomes the model; `best` has the lowest `measure`."""
    measure: Literal["feature_distance", "agreement"] = "feature_distance"
    """Figure by which `best` is chosen; lower is better."""

    @model_validator(mode="after")
    def _measured(self) -> Self:
        if self.keep == "best" and self.evaluate_every is None:
            raise ValueError("keep = 'best': nothing is measured; set evaluate_every")
        return self
