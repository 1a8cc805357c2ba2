"""Schema of the files of figures.

`metrics/<model>.json` and `evaluation_set/figures.json` are hashed, `logs/speed/<model>.json` is not.
docs/metrics.md explains every field. Write with `record.write_record`, read with `record.read_record`.
"""

from typing import Annotated, Literal

from pydantic import Field

from fewstep.evaluation.record import Interval, Ratio, Record

Share = Annotated[float, Field(ge=0, le=1)]
StepCount = Annotated[str, Field(pattern=r"^[1-9][0-9]*$")]
"""A number of steps; text, because it is a key of a JSON object."""


class Diversity(Record):
    """How different the images of one prompt are."""

    distance: Interval
    """Mean distance between two of them, in features."""
    layout: Interval
    """The same in the layout features."""
    vendi: float = Field(ge=0)
    """Effective number of distinct ones."""


class HiddenAttribute(Record):
    """An attribute that captions do not mention."""

    shares: dict[str, Share]
    p_value: Share
    entropy: float | None


class Figures(Record):
    """Figures of a set of images, generated or real."""

    images: int = Field(ge=1)
    prompt_accuracy: Interval | None
    """null: no labelled prompts or no classifier."""
    attributes: dict[str, Share] | None
    prompt_similarity: Interval | None
    """CLIP score; null: the feature network does not embed prompts."""
    kernel_distance: Interval
    """The headline: distance to the real images."""
    layout_distance: Interval
    """The same in position-sensitive features, see features/layout.py."""
    frechet_distance: float = Field(ge=0)
    precision: Share
    recall: Share
    density: float = Field(ge=0)
    coverage: Share
    diversity: Diversity | None
    """null: no prompt has several images."""
    hidden: dict[str, HiddenAttribute] | None
    drift: dict[str, Interval]
    copied: Interval


class Floor(Figures):
    """Real images against real ones."""

    pairing: Literal["caption", "none"]
    """caption: a real image with the same caption replaces each generated one. none: any other real image."""


class Reference(Record):
    """`figures.json` of the evaluation set: what the figures of any model are compared with."""

    floor: Floor | None
    """null: too few held-out images."""
    teacher: Figures
    """At its full step count."""
    teacher_steps: int


class StepMetrics(Figures):
    """One model at one step count."""

    nfe: int = Field(ge=1)
    """Evaluations of the network per image; guidance costs two per step."""
    kernel_ratio: Ratio
    """Kernel distance over the teacher's at its full step count."""
    layout_ratio: Ratio
    teacher_kernel_distance: Interval
    """Distance to the teacher's images instead of real ones."""
    teacher_frechet_distance: float = Field(ge=0)
    teacher_rmse: Share
    teacher_similarity: float = Field(ge=-1, le=1)
    flops_per_picture: float = Field(gt=0)
    flags: tuple[str, ...] = Field(strict=False)  # JSON has lists only
    """Warnings about these images; see flags.py."""


class Metrics(Record):
    """`metrics/<model>.json`."""

    model: str
    manifest: str = Field(pattern=r"^[0-9a-f]{64}$")
    """SHA-256 of the model's manifest, and so of its weights and ancestors."""
    pictures: int = Field(ge=1)
    reference: int = Field(ge=1)
    features: str
    guidance: float | None = None
    """null: the model takes no guidance weight."""
    parameters: int = Field(ge=1)
    straightness: float | None = Field(ge=0)
    """null: the model was trained at t = 1 only."""
    steps: dict[StepCount, StepMetrics] = Field(min_length=1)


class Speed(Record):
    """Sampling speed of one model at one step count."""

    latency_s: float = Field(gt=0)
    """Median seconds for a single image."""
    pictures_per_second: float = Field(gt=0)
    """Median throughput at the log's batch size."""
    peak_memory_bytes: int = Field(gt=0)
    """Peak memory so far, measured by the log's `memory_counter`."""
    text_s: float | None = Field(None, gt=0)
    """Median seconds to encode a single prompt; None in older logs, as the next two."""
    denoiser_s: float | None = Field(None, gt=0)
    """Median seconds of all solver steps of a single image."""
    decoder_s: float | None = Field(None, gt=0)
    """Median seconds to decode a single image."""


class SpeedLog(Record):
    """`logs/speed/<model>.json`."""

    model: str
    machine: str
    device: str
    memory_counter: str
    batch_size: int = Field(ge=1)
    steps: dict[StepCount, Speed] = Field(min_length=1)
