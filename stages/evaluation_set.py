"""evaluation_set: the prompts, noise samples and real images on which every model is measured."""

from pathlib import Path

from fewstep.config.base import read
from fewstep.config.evaluate import EvaluationSetConfig
from fewstep.config.sampling import SamplingConfig
from fewstep.core.hardware import device
from fewstep.core.paths import DATA, EVALUATION_SET, TEACHER
from fewstep.core.stage import run
from fewstep.evaluation.evaluation_set import make
from fewstep.evaluation.stored_set import save
from fewstep.features.network import open_features
from fewstep.sampling.draw import frozen_sampler
from fewstep.sampling.frozen import frozen_backbone


def main() -> None:
    """params.yaml `evaluation_set`, `sampling` + data + teacher + features -> artifacts/evaluation_set."""
    config, sampling = read(EvaluationSetConfig, "evaluation_set"), read(SamplingConfig, "sampling")
    path = read(Path, "features")
    teacher = frozen_sampler(TEACHER, frozen_backbone(TEACHER), sampling)
    made, grid = make(config, DATA, teacher, open_features(path).to(device()), read(int, "seed"))
    save(made, grid, EVALUATION_SET, {"data": DATA, "teacher": TEACHER, "features": path})


if __name__ == "__main__":
    run(main, writes=EVALUATION_SET)
