"""Forecasts how long a whole chain takes on this machine: measured durations of steps, times their numbers.

`measuring.py` measures, this module multiplies. Not included: loading weights, text encoders of foreign
teachers, downloads, compilation, and communication between processes.
"""

import tempfile
from math import ceil
from pathlib import Path

from fewstep.chain import Chain
from fewstep.checks.data import images_of
from fewstep.checks.designs import TEACHER
from fewstep.checks.machine import processes
from fewstep.checks.measuring import Measuring
from fewstep.checks.memory import Design
from fewstep.checks.plan import PlannedStage, plan
from fewstep.checks.rates import Rates
from fewstep.checks.rehearsal import rehearsal, uncompiled
from fewstep.checks.stopwatch import ROOM, Stopwatch
from fewstep.config.evaluate import EvaluationSetConfig
from fewstep.config.sampling import SamplingConfig
from fewstep.core.hardware import deterministic
from fewstep.core.pool import workers
from fewstep.core.units import duration
from fewstep.sources.units import RUN
from fewstep.training.loop import PREVIEWS
from fewstep.training.saving import interval

# Numbers of the evaluation that are not in params.yaml.
FEATURE_PASSES = 2
"""Passes of the feature network per drawn image: one for its features, one to classify its attributes."""
STRAIGHTNESS = (64, 16)
"""Images and steps of the straightness measurement."""
SPEED = (0.9, 70)
"""Speed log, per step count: seconds of timing, and images drawn besides (warm-up, a call in progress)."""
FIGURES = 2.0
"""Seconds to compute the metrics, per step count."""
REPORT = 6.0
"""Seconds of the report: DVC's graph and the plots."""

PREVIEW = (8, 4)
"""Images and steps of a training's preview."""
WITHOUT_TEACHER = ("watch_inputs", "prepare_data", "train_judge", "collect_code", "report")
"""Stages that open no pipeline."""
AROUND = 0.5
"""Seconds that DVC adds to a stage: it hashes what the stage reads and writes."""


def forecast(chain: Chain, denoiser: Design | None, watch: Stopwatch) -> dict[str, float | None]:
    """Seconds of every stage of `plan(chain)`, by name; None while its teacher is unknown.

    denoiser: `design(chain)`. Takes about `watch.budget` seconds.
    """
    deterministic()
    with tempfile.TemporaryDirectory() as folder, uncompiled():
        here = rehearsal(chain, denoiser, Path(folder), int(ROOM * watch.memory()))
        rates = Measuring(chain, denoiser, watch, here).rates()
    return {stage.name: seconds_of(chain, stage, rates) for stage in plan(chain)}


def in_words(seconds: dict[str, float | None]) -> str:
    """The sum in words, with the stages that it does not include."""
    unknown = [name for name, value in seconds.items() if value is None]
    total = duration(sum(value for value in seconds.values() if value is not None))
    without = f"; unknown until the teacher is there: {', '.join(unknown)}" if unknown else ""
    return f"about {total} on this machine for the whole chain{without}"


def seconds_of(chain: Chain, stage: PlannedStage, rates: Rates) -> float | None:
    """Seconds of one stage, the start of its process included."""
    kind, _, name = stage.name.partition("@")
    begun = AROUND + (rates.start if kind in WITHOUT_TEACHER else rates.open)
    if kind in rates.step:
        return plus(training(chain, stage, rates), begun)
    match kind:
        case "prepare_data":
            samples = stage.samples or 0
            return begun + samples * rates.prepare / (workers() if samples > RUN else 1)
        case "encode_data":
            return begun + (stage.samples or 0) * (rates.read + rates.prompt + rates.encode)
        case "generate_triplets":
            return plus(triplets(chain, stage, rates), begun)
        case "evaluation_set":
            return plus(evaluation_set(chain.evaluation_set, chain, rates), begun)
        case "evaluate":
            return plus(evaluation(chain, name, rates), begun)
        case "report":
            return begun + REPORT
    return begun


def plus(seconds: float | None, more: float) -> float | None:
    """The sum; None where one is unknown."""
    return None if seconds is None else seconds + more


def training(chain: Chain, stage: PlannedStage, rates: Rates) -> float | None:
    """Seconds of a training: steps, reading their images, previews, and saving its state."""
    each = rates.step[stage.name]
    if each is None or stage.steps is None:
        return None
    images, steps = PREVIEW
    model = stage.name if stage.name in rates.student else TEACHER
    preview = images * ((solving(model, in_steps(chain, steps), rates) or 0.0) + rates.decode)
    seconds = stage.steps * each + PREVIEWS * preview
    if stage.name in ("train_judge", "train_teacher, autoencoder"):
        # A shard is decoded anew in each epoch.
        seconds += (stage.samples or 0) * rates.read
    if stage.name == "train_teacher, autoencoder":
        # Then every training image is encoded once.
        seconds += (1 - chain.data.heldout) * (images_of(chain.data) or 0) * (rates.read + rates.encode)
    save = rates.save[stage.name]
    # Writing is counted although it is in the background: it takes time from a training on CPUs.
    saves = 1 + (seconds / interval(save) if interval(save) else stage.steps)
    return seconds + saves * save


def triplets(chain: Chain, stage: PlannedStage, rates: Rates) -> float | None:
    """Seconds of a group of triplet shards: reading captions with images, encoding prompts, teacher steps."""
    each = solving(TEACHER, chain.triplets.sampling(chain.sampling), rates)
    if each is None:
        return None
    drawn = ceil((stage.samples or 0) / processes())
    return (stage.samples or 0) * (rates.read + rates.prompt) + drawn * each


def evaluation_set(config: EvaluationSetConfig, chain: Chain, rates: Rates) -> float | None:
    """Seconds of real images and their features, and of the teacher's images at its full step count."""
    each = solving(TEACHER, chain.sampling, rates)
    if each is None:
        return None
    read = max(config.pictures, config.reference) + config.training
    real = read * rates.read + config.reference * FEATURE_PASSES * rates.features
    return real + drawing(drawn(config), each, rates) + FIGURES


def evaluation(chain: Chain, name: str, rates: Rates) -> float | None:
    """Seconds of images at every step count, their metrics, the straightness and the speed log."""
    images, steps = STRAIGHTNESS
    straightness = solving(name, in_steps(chain, steps), rates)
    if straightness is None:
        return None
    seconds = images * straightness
    timing, more = SPEED
    for count in chain.evaluate.models[name]:
        each = solving(name, in_steps(chain, count), rates) or 0.0
        seconds += FIGURES + timing + more * (each + rates.decode)
        if not (name == TEACHER and count == chain.sampling.steps):
            # The evaluation set holds the teacher's images at its full step count.
            seconds += drawing(drawn(chain.evaluation_set), each, rates)
    return seconds


def in_steps(chain: Chain, steps: int) -> SamplingConfig:
    """The chain's sampling settings with another number of steps."""
    return chain.sampling.model_copy(update={"steps": steps})


def solving(model: str, sampling: SamplingConfig, rates: Rates) -> float | None:
    """Seconds of one image's solver steps; outside of the guidance interval a step is shorter."""
    each = rates.teacher if model == TEACHER else rates.student[model]
    return None if each is None else sampling.steps * each * rates.share(model, sampling)


def drawn(config: EvaluationSetConfig) -> int:
    """Images of one model at one step count: one per prompt, and more of some prompts for diversity."""
    return config.pictures + config.diversity.prompts * (config.diversity.samples - 1)


def drawing(images: int, each: float, rates: Rates) -> float:
    """Seconds to draw images, decode them and extract features; each: solver steps of one image."""
    return images * (rates.prompt + each + rates.decode + FEATURE_PASSES * rates.features)
