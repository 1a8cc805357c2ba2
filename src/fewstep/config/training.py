"""How anything is trained; part of the section of whatever is trained."""

from typing import Literal, Self

from pydantic import Field, model_validator

from fewstep.config.base import Section


class OptimizerConfig(Section):
    """Optimizer of one group of networks. A method with several groups has one of these for each."""

    learning_rate: float = Field(gt=0)
    """Peak learning rate."""
    warmup: int = Field(0, ge=0)
    """Steps of linear warm-up: step k of W, counted from 0, has (k + 1) / W of the peak."""
    decay: Literal["constant", "linear", "cosine"] = "cosine"
    """How the rate falls from its peak. `linear` and `cosine` reach 0 at the training's step `steps`, one
    after the last, so that no step is wasted (as in transformers' `get_scheduler`)."""
    optimizer: Literal["adamw", "adamw_8bit", "muon"] = "adamw"
    """muon: orthogonalised momentum for hidden layers, AdamW for the rest; learns in fewer steps. adamw_8bit:
    averages of a byte each (Dettmers et al. 2022), by bitsandbytes, which is not installed with the rest."""
    betas: tuple[float, float] = (0.9, 0.999)
    """AdamW's averaging coefficients."""
    weight_decay: float = Field(0.0, ge=0)
    clip: float = Field(1.0, gt=0)
    """Largest gradient norm."""
    ema: float | None = Field(None, gt=0, lt=1)
    """Decay of the weights' moving average, which is then what is kept; null: none."""


class TrainingConfig(OptimizerConfig):
    """Length and batch size of one training, and the optimizer of its first group.

    Device, processes and precision are the machine's matter (see README).
    """

    steps: int = Field(ge=1)
    """Optimizer steps."""
    batch_size: int = Field(ge=1)
    """Global batch: samples per step over all processes."""


class StudentTrainingConfig(TrainingConfig):
    """Of a student, which is measured against the teacher while it trains."""

    evaluate_every: int | None = Field(None, ge=1)
    """Steps between measurements on fixed prompts and noise, against the teacher; null: none."""
    keep: Literal["last", "best"] = "last"
    """Which of the measured states becomes the model; `best` has the lowest `measure`."""
    measure: Literal["feature_distance", "agreement"] = "feature_distance"
    """Which figure of an evaluation `best` goes by; lower is better."""

    @model_validator(mode="after")
    def _measured(self) -> Self:
        if self.keep == "best" and self.evaluate_every is None:
            raise ValueError("keep = 'best': nothing is measured; set evaluate_every")
        return self
