"""The full figure: models measured on more pictures than the chain draws by default."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from fewstep.artifacts.manifest import identity
from fewstep.backbones.base import open_backbone, open_model
from fewstep.config.base import read
from fewstep.config.evaluate import EvaluationSetConfig
from fewstep.config.sampling import SamplingConfig
from fewstep.evaluation.evaluate import measure
from fewstep.evaluation.evaluation_set import make
from fewstep.evaluation.schema import Metrics
from fewstep.features.network import open_features
from fewstep.hardware import deterministic, device
from fewstep.layout import DATA, MODELS, TEACHER
from fewstep.sampling.draw import Sampler


def evaluate_fully(models: Mapping[str, Sequence[int]], pictures: int) -> Iterator[Metrics]:
    """Metrics of each model (name -> step counts) on `pictures` held-out prompts; nothing is written."""
    deterministic()
    config = read(EvaluationSetConfig, "evaluation_set").model_copy(update={"pictures": pictures})
    sampling, features = read(SamplingConfig, "sampling"), open_features(read(Path, "features")).to(device())
    backbone = open_backbone(TEACHER)
    teacher = Sampler(open_model(TEACHER, backbone), backbone, sampling)
    on, _ = make(config, DATA, teacher, features, read(int, "seed"))
    for name, steps in models.items():
        sampler = Sampler(open_model(MODELS / name, backbone), backbone, sampling)
        yield measure(sampler, identity(MODELS / name), steps, on, features)[0]
