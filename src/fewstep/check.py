"""`fewstep check`: everything that can be known to be wrong before any compute, and the plan."""

import shutil
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, NamedTuple

import torch
from huggingface_hub import try_to_load_from_cache
from packaging.requirements import Requirement

from fewstep.artifacts.folder import read_json
from fewstep.backbones.base import family
from fewstep.backbones.own_code import own_modules
from fewstep.backbones.pipeline import class_in
from fewstep.backbones.sd_new import new_net, new_vae
from fewstep.config.chain import Chain
from fewstep.config.training import TrainingConfig
from fewstep.errors import UserError
from fewstep.layout import DATA
from fewstep.memory import Design, Setup, operations, setup_of, trace

LOCK = Path("requirements.lock")


class PlannedStage(NamedTuple):
    """One row of the plan; disk in bytes, of what the stage writes."""

    name: str
    samples: int | None
    steps: int | None
    disk: int | None


def check(chain: Chain) -> list[PlannedStage]:
    """The plan of a valid chain. Raises UserError on a missing input, a wrong version or too little disk."""
    faults = [*missing_inputs(chain), *wrong_versions()]
    stages = plan(chain)
    needed = sum(stage.disk or 0 for stage in stages)
    free = shutil.disk_usage(".").free
    # DVC keeps a second copy in its cache where the file system cannot link.
    if 2 * needed > free:
        faults.append(
            f"disk: the chain writes about {2 * needed / 1e9:.1f} GB, {free / 1e9:.1f} GB are free here"
        )
    if faults:
        raise UserError("\n".join(faults))
    return stages


def missing_inputs(chain: Chain) -> list[str]:
    """Inputs named in params.yaml that are not there."""
    faults = []
    path = chain.data.path
    if path and "://" not in path and "{" not in path and not Path(path).expanduser().exists():
        faults.append(f"params.yaml: data.path = {path!r}: no such file or folder")
    prompts = chain.triplets.prompts
    if prompts != DATA and not prompts.is_file():
        faults.append(
            f"params.yaml: triplets.prompts = {prompts}: no such file; {DATA} takes the training captions"
        )
    for where in chain.teacher.load:
        place = Path(where).expanduser()
        local = place.exists() or where.startswith((".", "/", "~"))
        if local and not place.is_file() and not (place / "model_index.json").is_file():
            faults.append(
                f"params.yaml: teacher.load = [{where}]: no diffusers folder (model_index.json) there"
            )
        cached = local or isinstance(try_to_load_from_cache(where, "model_index.json"), str)
        if chain.import_teacher.local_files_only and not cached:
            faults.append(
                f"params.yaml: import_teacher.local_files_only: {where} is not in the cache; run "
                f"`hf download {where}` first"
            )
    for factory in chain.teacher.adopt:
        try:
            own_modules(factory.partition(":")[0])
        except UserError as error:
            faults.append(str(error))
    if chain.features.suffix and not chain.features.is_file():
        faults.append(
            f"params.yaml: features = {chain.features}: no such file; see docs/metrics.md for where to get it"
        )
    return faults


def wrong_versions() -> list[str]:
    """Installed packages that differ from requirements.lock."""
    if not LOCK.is_file():
        return []
    faults = []
    for line in LOCK.read_text().splitlines():
        if not line.strip() or line.lstrip().startswith(("#", "-")):
            continue
        wanted = Requirement(line.split(" #")[0].rstrip("\\ "))
        if wanted.marker and not wanted.marker.evaluate():
            continue
        try:
            found = version(wanted.name)
        except PackageNotFoundError:
            found = "missing"
        if found == "missing" or not wanted.specifier.contains(found.split("+")[0], prereleases=True):
            faults.append(f"{wanted.name}: {found}, {LOCK} wants {wanted.specifier}; run `make setup`")
    return faults


def plan(chain: Chain) -> list[PlannedStage]:
    """Every stage with what it goes through and leaves behind."""
    pixels = 3 * chain.data.resolution**2
    count = chain.data.count
    stages = [PlannedStage("prepare_data", count, None, count * pixels // 2 if count else None)]
    if chain.judge.train and chain.train_judge:
        stages.append(training("train_judge", chain.train_judge.training, None))
    model, latent = model_bytes(chain)
    if chain.teacher.train and chain.train_teacher:
        vae = chain.train_teacher.vae.training
        stages.append(training("train_teacher, autoencoder", vae, None))
        stages.append(training("train_teacher, denoiser", chain.train_teacher.training, model))
    else:
        if chain.teacher.adopt:
            stages.append(PlannedStage("collect_code", None, None, None))
        stages.append(PlannedStage(taking_over(chain), None, None, model))
    for split in chain.encode_data:
        stages.append(
            PlannedStage(f"encode_data@{split}", count, None, count * latent if count and latent else None)
        )
    size = chain.triplets.shard_size
    for shard in chain.triplets.shards:
        stages.append(
            PlannedStage(
                f"generate_triplets@{shard}", size, chain.triplets.steps, size * latent if latent else None
            )
        )
    for name, config in chain.objectives().items():
        stages.append(training(name, config.training, model))
    drawn = chain.evaluation_set.pictures
    stages.append(PlannedStage("evaluation_set", drawn, chain.sampling.steps, drawn * pixels))
    for name, counts in chain.evaluate.models.items():
        stages.append(PlannedStage(f"evaluate@{name}", drawn * len(counts), sum(counts), None))
    return stages


def taking_over(chain: Chain) -> str:
    """How the plan names the stage that brings a foreign teacher, and what it will have to download."""
    if chain.teacher.adopt:
        return "adopt_teacher"
    (where,) = chain.teacher.load
    local = Path(where).expanduser().exists()
    if local or isinstance(try_to_load_from_cache(where, "model_index.json"), str):
        return "import_teacher"
    return f"import_teacher, downloads {where}"


def training(name: str, config: TrainingConfig, disk: int | None) -> PlannedStage:
    """A training's row."""
    return PlannedStage(name, config.steps * config.batch_size, config.steps, disk)


def model_bytes(chain: Chain) -> tuple[int | None, int | None]:
    """Bytes of a denoiser and of a latent, counted on the meta device; None for a foreign teacher."""
    config, designed = chain.train_teacher, design(chain)
    if not chain.teacher.train or config is None or designed is None:
        return None, None
    with torch.device("meta"):
        net = designed.make()
        new_vae(config.vae)
    return 4 * sum(p.numel() for p in net.parameters()), 4 * config.vae.latent_channels * latent_side(
        chain
    ) ** 2


def latent_side(chain: Chain) -> int:
    """Height and width of a latent of the chain's own teacher."""
    assert chain.train_teacher is not None
    return chain.data.resolution >> (len(chain.train_teacher.vae.channels) - 1)


def design(chain: Chain) -> Design | None:
    """The denoiser that the chain trains; None while a foreign one is not there or does not tell."""
    config = chain.train_teacher
    if chain.teacher.train and config is not None:
        vae, text = config.vae, config.text
        make = partial(new_net, config.net, latent_side(chain), vae.latent_channels, text.width)
        return Design(chain.teacher.backbone, make, text.length)
    if not chain.teacher.load:
        return None
    kind, (where,) = family(chain.teacher.backbone), chain.teacher.load
    file = Path(where).expanduser() / kind.net_part / "config.json"
    if not Path(where).expanduser().exists() and not where.startswith((".", "/", "~")):
        revision = chain.import_teacher.revision
        cached = try_to_load_from_cache(where, f"{kind.net_part}/config.json", revision=revision)
        file = Path(cached) if isinstance(cached, str) else file
    if not file.is_file() or read_json(file).get("_class_name") != kind.net_class:
        return None
    make = partial(configured, kind.net_class, file)
    return Design(chain.teacher.backbone, make, pipeline=class_in(file.parents[1]))


def configured(net_class: str, file: Path) -> Any:
    """An untrained network of diffusers with the configuration in a file."""
    import diffusers

    return getattr(diffusers, net_class).from_config(read_json(file))


def trainings(chain: Chain) -> dict[str, Setup]:
    """Every training of a denoiser."""
    found = {}
    if chain.teacher.train and chain.train_teacher:
        found["train_teacher, denoiser"] = setup_of(chain.train_teacher.training, None, False)
    objectives = chain.objectives().items()
    return found | {name: setup_of(config.training, config.lora, True) for name, config in objectives}


def work(chain: Chain, denoiser: Design) -> dict[str, int | None]:
    """Floating-point operations of the denoiser per stage that needs it most; None where they are unknown."""
    samples = {stage.name: stage.samples or 0 for stage in plan(chain)}
    found = {name: operations(denoiser, setup, samples[name]) for name, setup in trainings(chain).items()}
    once = trace(denoiser, None, False).operations
    guided = chain.triplets.guidance is not None or chain.sampling.guidance != 1
    asked = chain.triplets.shard_size * chain.triplets.steps * (2 if guided else 1)
    shards = {f"generate_triplets@{n}": asked * once if once else None for n in chain.triplets.shards}
    return shards | found
