"""evaluate: one model at its step counts, on the evaluation set."""

import sys
from pathlib import Path

from fewstep.artifacts.manifest import Manifest, identity
from fewstep.config.base import read
from fewstep.config.sampling import SamplingConfig
from fewstep.core.files import whole_folder
from fewstep.core.hardware import device
from fewstep.core.paths import EVALUATION_SET, EVALUATIONS, LOGS, METRICS, MODELS, TEACHER
from fewstep.core.stage import run
from fewstep.evaluation.evaluate import measure, speed_log
from fewstep.evaluation.grid import write_strip
from fewstep.evaluation.record import write_record
from fewstep.evaluation.stored_set import load
from fewstep.features.network import open_features
from fewstep.sampling.draw import frozen_sampler
from fewstep.sampling.frozen import frozen_backbone

NAME = sys.argv[1]
SPEED_BATCH, SPEED_SECONDS = 32, 0.3


def main() -> None:
    """params.yaml `evaluate.models.NAME` + model + set -> metrics/NAME.json, artifacts/evaluations/NAME."""
    steps = read(tuple[int, ...], "evaluate", "models", NAME)
    folder = MODELS / NAME
    sampler = frozen_sampler(folder, frozen_backbone(TEACHER), read(SamplingConfig, "sampling"))
    on = load(EVALUATION_SET)
    metrics, images = measure(
        sampler, identity(folder), steps, on, open_features(read(Path, "features")).to(device())
    )
    speed = speed_log(sampler, steps, on.prompts.prompts[0], SPEED_BATCH, SPEED_SECONDS)
    write_record(LOGS / "speed" / f"{NAME}.json", speed)
    with whole_folder(EVALUATIONS / NAME) as staging:
        for n, pixels in images.items():
            write_strip(staging / f"grid-{n}.png", pixels[: on.grid])
        Manifest.seal(staging, "evaluation", {"steps": list(steps)}, {NAME: folder, "set": EVALUATION_SET})
    write_record(METRICS / f"{NAME}.json", metrics)


if __name__ == "__main__":
    run(main, writes=METRICS / f"{NAME}.json")
