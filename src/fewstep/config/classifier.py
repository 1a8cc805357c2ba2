"""`train_judge:` the attribute classifier for labelled data, whose artifact is named `judge`."""

from pydantic import Field

from fewstep.config.base import Section
from fewstep.config.training import TrainingConfig


class ClassifierConfig(Section):
    """The `train_judge` section."""

    widths: tuple[int, ...]
    """Channels per level; each level halves the side."""
    feature_dim: int = Field(64, ge=2)
    """Dimension of the features in which distances are measured."""
    noise: float = Field(0.05, ge=0)
    """Standard deviation of the noise added to training images in [-1, 1]."""
    training: TrainingConfig
