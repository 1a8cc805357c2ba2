"""`fewstep evaluate`: evaluates models on more images than the chain does, and on several draws of them."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from fewstep.artifacts.manifest import identity
from fewstep.config.base import read
from fewstep.config.evaluate import EvaluationSetConfig
from fewstep.config.sampling import SamplingConfig
from fewstep.core.hardware import deterministic, device
from fewstep.core.paths import DATA, MODELS, TEACHER
from fewstep.evaluation.evaluate import measure
from fewstep.evaluation.evaluation_set import EvaluationSet, make
from fewstep.evaluation.spread import spread
from fewstep.features.network import FeatureNetwork, open_features
from fewstep.sampling.draw import Sampler, frozen_sampler
from fewstep.sampling.frozen import frozen_backbone

FLOOR = "floor"
"""Name of the floor's record, in place of a model's: real images against real ones."""

Json = dict[str, Any]


def evaluate_fully(models: Mapping[str, Sequence[int]], images: int, draws: int = 1) -> Iterator[Json]:
    """Figures of each model (name -> step counts) on `images` held-out prompts; nothing is written.

    Yields a record per model and then the floor's, if there is one. With several draws it yields these
    records for each draw, with its number, and at the end the spread of each over the draws.
    """
    deterministic()
    config = read(EvaluationSetConfig, "evaluation_set").model_copy(update={"pictures": images})
    sampling, network = read(SamplingConfig, "sampling"), open_features(read(Path, "features")).to(device())
    teacher = frozen_sampler(TEACHER, frozen_backbone(TEACHER), sampling)
    measured: dict[tuple[str, int | None], list[Json]] = {}
    for draw in range(draws):
        on, _ = make(config, DATA, teacher, network, read(int, "seed"), draw)
        for record in records(models, on, teacher, network):
            yield {"draw": draw, **record} if draws > 1 else record
            for steps, figures in by_steps(record):
                measured.setdefault((record["model"], steps), []).append(figures)
    for (model, steps), each in measured.items():
        # The floor may be missing in some draws.
        if len(each) > 1:
            counted = {} if steps is None else {"steps": steps}
            yield {"model": model, **counted, "draws": len(each), **spread(each)}


def records(
    models: Mapping[str, Sequence[int]], on: EvaluationSet, teacher: Sampler, network: FeatureNetwork
) -> Iterator[Json]:
    """Every model's figures on one set, then the floor's."""
    for name, steps in models.items():
        sampler = frozen_sampler(MODELS / name, teacher.backbone, teacher.sampling)
        yield measure(sampler, identity(MODELS / name), steps, on, network)[0].model_dump(mode="json")
    if on.reference.floor is not None:
        yield {"model": FLOOR, **on.reference.floor.model_dump(mode="json")}


def by_steps(record: Json) -> list[tuple[int | None, Json]]:
    """A record's figures at each step count; the floor has none."""
    if "steps" not in record:
        return [(None, {key: value for key, value in record.items() if key != "model"})]
    # Straightness is a property of the model, independent of the step count.
    shared = {"straightness": record["straightness"]}
    return [(int(steps), figures | shared) for steps, figures in record["steps"].items()]
