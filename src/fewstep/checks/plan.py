"""The plan: every stage of a chain, with its samples, its steps and the bytes it writes."""

from dataclasses import replace
from typing import NamedTuple

from fewstep.chain import Chain
from fewstep.checks.data import images_of
from fewstep.checks.designs import TEACHER, designs
from fewstep.checks.image_networks import decoding
from fewstep.checks.memory import FLOAT, Setup, setup_of, student_setup
from fewstep.checks.stored import BYTES, own_adapter, stored, whole
from fewstep.checks.teacher import Sizes, companions, design, in_cache, is_local, sizes
from fewstep.config.training import TrainingConfig


class PlannedStage(NamedTuple):
    """One row of the plan; disk: bytes that the stage writes."""

    name: str
    samples: int | None
    steps: int | None
    disk: int | None


def plan(chain: Chain) -> list[PlannedStage]:
    """Every stage of the chain, in order."""
    pixels = 3 * chain.data.resolution**2
    count = images_of(chain.data)
    stages = [
        PlannedStage("watch_inputs", None, None, None),
        PlannedStage("prepare_data", count, None, count * pixels // 2 if count else None),
    ]
    if chain.judge.train and chain.train_judge:
        stages.append(training("train_judge", chain.train_judge.training, None))
    denoiser = design(chain)
    size = sizes(denoiser) if denoiser else None
    nets = designs(chain, denoiser) if denoiser else {}
    disk, written = whole(nets), stored(chain, nets)
    value = BYTES[chain.import_teacher.dtype]
    others = companions(chain)
    if chain.teacher.train and chain.train_teacher:
        vae = chain.train_teacher.vae.training
        stages.append(training("train_teacher, autoencoder", vae, None))
        stages.append(training("train_teacher, denoiser", chain.train_teacher.training, disk.get(TEACHER)))
    else:
        if chain.teacher.adopt:
            stages.append(PlannedStage("collect_code", None, None, None))
        denoisers = disk[TEACHER] // FLOAT * value if TEACHER in disk else None
        stages.append(PlannedStage(taking_over(chain), None, None, plus(denoisers, value * others)))
    for split in chain.encode_data:
        share = {"train": 1 - chain.data.heldout, "heldout": chain.data.heldout}[split]
        images = round(count * share) if count is not None else None
        latents = encoded(size, images, chain.encode_data[split].dtype)
        stages.append(PlannedStage(f"encode_data@{split}", images, None, latents))
    for group in chain.triplets.groups:
        drawn = len(chain.triplets.shards(group)) * chain.triplets.shard_size
        latents = encoded(size, drawn, chain.triplets.dtype)
        stages.append(PlannedStage(f"generate_triplets@{group}", drawn, chain.triplets.steps, latents))
    for name, made in chain.models().items():
        stages.append(training(name, made.training, written.get(name)))
    drawn = chain.evaluation_set.pictures
    stages.append(PlannedStage("evaluation_set", drawn, chain.sampling.steps, drawn * pixels))
    for name, counts in chain.evaluate.models.items():
        stages.append(PlannedStage(f"evaluate@{name}", drawn * len(counts), sum(counts), None))
    for name in chain.export:
        # The network in the pipeline, and alone; the adapter with two kinds of names.
        twice = 2 * (disk[name] + own_adapter(chain, nets, name)) if name in disk else None
        stages.append(PlannedStage(f"export@{name}", None, None, plus(twice, FLOAT * others)))
    return [*stages, PlannedStage("report", None, None, None)]


def plus(denoiser: int | None, others: int) -> int | None:
    """Bytes of a denoiser and of other weights; None where those of the denoiser are unknown."""
    return None if denoiser is None else denoiser + others


def encoded(size: Sizes | None, count: int | None, dtype: str) -> int | None:
    """Bytes of `count` latents and, at most, as many different prompts; None where they are unknown."""
    return count * (size.latent + size.prompt) * BYTES[dtype] if size and count else None


def taking_over(chain: Chain) -> str:
    """The plan's name for the stage that imports a foreign teacher, including what it has to download."""
    if chain.teacher.adopt:
        return "adopt_teacher"
    (where,) = chain.teacher.load
    if is_local(where) or in_cache(where, chain.import_teacher.revision) is not None:
        return "import_teacher"
    return f"import_teacher, downloads {where}"


def training(name: str, config: TrainingConfig | None, disk: int | None) -> PlannedStage:
    """The plan's row for a training; config: None for a model that is not trained."""
    if config is None:
        return PlannedStage(name, None, None, disk)
    return PlannedStage(name, config.steps * config.batch_size, config.steps, disk)


def trainings(chain: Chain) -> dict[str, Setup]:
    """Every training of a denoiser, by its name in the plan."""
    setups = {}
    if chain.teacher.train and chain.train_teacher:
        setups["train_teacher, denoiser"] = setup_of(chain.train_teacher.training, None, False)
    for name, model in chain.models().items():
        if model.config.trains_denoiser:
            setups[name] = replace(student_setup(model.config), decoding=decoding(chain, model.config))
    return setups
