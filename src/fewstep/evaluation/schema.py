"""The two files of figures: `metrics/<model>.json` (hashed) and `logs/speed/<model>.json` (not).

docs/metrics.md explains every field. Write with `record.write_record`, read with `record.read_record`.
"""

from typing import Annotated

from pydantic import Field

from fewstep.evaluation.record import Interval, Record

Share = Annotated[float, Field(ge=0, le=1)]
StepCount = Annotated[str, Field(pattern=r"^[1-9][0-9]*$")]
"""A number of steps; text, because it is a key of a JSON object."""


class StepMetrics(Record):
    """One model at one step count."""

    nfe: int = Field(ge=1)
    """Evaluations of the network per picture; guidance costs two per step."""
    prompt_accuracy: Interval | None
    """null: no labelled prompts or no judge."""
    attributes: dict[str, Share] | None
    frechet_distance: Interval
    kernel_distance: float
    precision: Share
    recall: Share
    teacher_rmse: Share
    teacher_similarity: float = Field(ge=-1, le=1)
    flops_per_picture: float = Field(gt=0)


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
    steps: dict[StepCount, StepMetrics] = Field(min_length=1)


class Speed(Record):
    """How fast one model draws at one step count."""

    latency_s: float = Field(gt=0)
    """Median seconds for a single picture."""
    pictures_per_second: float = Field(gt=0)
    """Median throughput at the log's batch size."""
    peak_memory_bytes: int = Field(gt=0)
    """Largest memory so far, as the log's `memory_counter` counts it."""


class SpeedLog(Record):
    """`logs/speed/<model>.json`."""

    model: str
    machine: str
    device: str
    memory_counter: str
    batch_size: int = Field(ge=1)
    steps: dict[StepCount, Speed] = Field(min_length=1)
