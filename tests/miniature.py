"""A project in the working folder, with a miniature pipeline for its teacher."""

import atexit
import json
import shutil
import tempfile
from functools import cache
from pathlib import Path
from typing import Any

from fewstep.artifacts.manifest import Manifest, identity
from fewstep.artifacts.workspace import Workspace
from fewstep.backbones.importing import import_teacher
from fewstep.backbones.model import open_model
from fewstep.backbones.protocol import Backbone
from fewstep.backbones.registry import open_backbone
from fewstep.config.data import DataConfig
from fewstep.config.sampling import SamplingConfig
from fewstep.config.teacher import ImportTeacherConfig
from fewstep.config.triplets import TripletsConfig
from fewstep.core.files import whole_folder
from fewstep.core.hardware import mixed_precision
from fewstep.core.paths import DATA, TEACHER, TRIPLETS
from fewstep.preparation.prepare import prepare
from fewstep.sampling.draw import Sampler
from fewstep.sampling.triplets import write_triplets
from tests.pipelines import backbone_of, make


def import_miniature(family: str, **options: Any) -> Backbone:
    """Put a stock pipeline into `stock` and its import in the teacher's place, where they are not already.

    Each is made once in a process of pytest and copied then.
    """
    made = imported(family, **options)
    for place in (Path("stock"), TEACHER):
        shutil.copytree(made / place, place, dirs_exist_ok=True)
    return open_backbone(TEACHER)


@cache
def imported(family: str, **options: Any) -> Path:
    """A folder with `stock` and the teacher."""
    folder = new_folder()
    make(family, folder / "stock", **options)
    with whole_folder(folder / TEACHER) as staging:
        metadata = import_teacher(str(folder / "stock"), backbone_of(family), ImportTeacherConfig(), staging)
        Manifest.seal(staging, "teacher", metadata, {})
    return folder


def prepare_images(resolution: int = 64) -> None:
    """Put data of the embedded source in their place; made once as well."""
    shutil.copytree(prepared(resolution), DATA, dirs_exist_ok=True)


@cache
def prepared(resolution: int) -> Path:
    """Prepared data."""
    folder = new_folder() / DATA
    prepare(DataConfig(source="shapes", count=48, resolution=resolution, heldout=0.5), 0, folder)
    return folder


def new_folder() -> Path:
    """A folder that goes when this process ends."""
    folder = Path(tempfile.mkdtemp())
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


def draw_triplets(backbone: Backbone, guidance: float | tuple[float, float] = 1.0, **options: Any) -> Sampler:
    """Shard 0, of eight triplets in two steps each. Returns what draws it.

    With the data's captions, each is drawn once in a process of pytest and copied then.
    """
    if not isinstance(guidance, float):
        options["guidance"], guidance = guidance, 1.0
    config = TripletsConfig(
        **{"prompts": DATA, "count": 8, "groups": (0,), "shard_size": 8, "steps": 2, **options}
    )
    teacher = Sampler(
        open_model(TEACHER, backbone), backbone, SamplingConfig(steps=config.steps, guidance=guidance)
    )
    params = config.model_dump(mode="json") | {"sampling": teacher.sampling.model_dump(mode="json")}
    if config.prompts == DATA:
        made = (identity(TEACHER), identity(DATA), json.dumps(params), mixed_precision())
        if made not in DRAWN:
            DRAWN[made] = new_folder() / TRIPLETS
            draw(teacher, config, params)
            shutil.copytree(TRIPLETS, DRAWN[made])
        shutil.copytree(DRAWN[made], TRIPLETS, dirs_exist_ok=True)
    else:
        draw(teacher, config, params)
    return teacher


DRAWN: dict[tuple[str, ...], Path] = {}
"""What triplets depend on -> a folder with them."""


def draw(teacher: Sampler, config: TripletsConfig, params: dict[str, Any]) -> None:
    """Draw shard 0."""
    work = Workspace("generate_triplets@0", params, {"teacher": TEACHER})
    write_triplets(TRIPLETS / "0", teacher, config, 0, 0, work, {"teacher": TEACHER})
    work.finish()
