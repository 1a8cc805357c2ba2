"""A project in the working folder, with a miniature pipeline for its teacher."""

from pathlib import Path
from typing import Any

from fewstep.artifacts.folder import whole_folder
from fewstep.artifacts.manifest import Manifest
from fewstep.backbones.base import Backbone, open_backbone, open_model
from fewstep.backbones.importing import import_teacher
from fewstep.config.data import DataConfig
from fewstep.config.sampling import SamplingConfig
from fewstep.config.teacher import ImportTeacherConfig
from fewstep.config.triplets import TripletsConfig
from fewstep.layout import DATA, TEACHER, TRIPLETS
from fewstep.preparation.prepare import prepare
from fewstep.sampling.draw import Sampler
from fewstep.sampling.triplets import write_triplets
from tests.pipelines import backbone_of, make


def import_miniature(family: str, **options: Any) -> Backbone:
    """Make a stock pipeline and import it as the teacher."""
    make(family, Path("stock"), **options)
    with whole_folder(TEACHER) as staging:
        facts = import_teacher("stock", backbone_of(family), ImportTeacherConfig(), staging)
        Manifest.seal(staging, "teacher", facts, {})
    return open_backbone(TEACHER)


def prepare_pictures(resolution: int = 64) -> None:
    """Data of the embedded source."""
    prepare(DataConfig(source="shapes", count=48, resolution=resolution, heldout=0.5), 0, DATA)


def draw_triplets(backbone: Backbone, guidance: float | tuple[float, float] = 1.0, **options: Any) -> Sampler:
    """Shard 0, of eight triplets in two steps each. Returns what drew it."""
    if not isinstance(guidance, float):
        options["guidance"], guidance = guidance, 1.0
    config = TripletsConfig(**{"prompts": DATA, "shards": (0,), "shard_size": 8, "steps": 2, **options})
    teacher = Sampler(
        open_model(TEACHER, backbone), backbone, SamplingConfig(steps=config.steps, guidance=guidance)
    )
    write_triplets(TRIPLETS / "0", teacher, config, 0, 0, Path("work"), {"teacher": TEACHER})
    return teacher
