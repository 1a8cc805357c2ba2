"""Checks that this machine can run the chain: git and DVC, installed versions, disk space, switches."""

import shutil
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from dvc.config import Config, ConfigError  # type: ignore[import-untyped]
from packaging.requirements import Requirement

from fewstep.chain import Chain
from fewstep.checks.plan import plan
from fewstep.checks.states import AT_ONCE, largest
from fewstep.core.errors import UserError
from fewstep.core.hardware import mixed_precision
from fewstep.core.switches import count_of, switch
from fewstep.training.ahead import depth
from fewstep.training.saving import least, share

LOCK = Path("requirements.lock")
DVC = Path(".dvc")
"""DVC's folder in the repository."""


def faults(chain: Chain) -> Iterator[str]:
    """What must be fixed before `dvc repro` can run on this machine."""
    yield from repository()
    yield from wrong_versions()
    yield from switches()
    yield from few_samples(chain)
    yield from disk(chain)


def repository() -> Iterator[str]:
    """What DVC would refuse: it needs a git repository, unless it is configured with `core.no_scm`."""
    if not Path("dvc.yaml").is_file():
        return
    if not DVC.is_dir():
        yield "there is no .dvc here: `git init && dvc init`"
        return
    try:
        in_git = not settings()["core"]["no_scm"]
    except UserError as error:
        yield str(error)
        return
    if in_git and not any((folder / ".git").exists() for folder in (Path.cwd(), *Path.cwd().parents)):
        yield "this is no git repository, which DVC needs: `git init` (or `dvc config core.no_scm true`)"


def settings() -> Any:
    """DVC's settings in this repository. Raises UserError where DVC refuses them."""
    try:
        return Config(dvc_dir=str(DVC))
    except ConfigError as error:
        reason = str(error).removeprefix("config file error: ")
        raise UserError(f"{DVC}/config or {DVC}/config.local: {reason}; correct it") from error


def wrong_versions() -> Iterator[str]:
    """Installed packages that differ from requirements.lock."""
    if not LOCK.is_file():
        return
    for line in LOCK.read_text().splitlines():
        if not line.strip() or line.lstrip().startswith(("#", "-")):
            continue
        wanted = Requirement(line.split(" #")[0].rstrip("\\ "))
        if wanted.marker and not wanted.marker.evaluate():
            continue
        try:
            installed = version(wanted.name)
        except PackageNotFoundError:
            installed = "missing"
        if installed == "missing" or not wanted.specifier.contains(installed.split("+")[0], prereleases=True):
            yield f"{wanted.name}: {installed}, {LOCK} wants {wanted.specifier}; run `make setup`"


def switches() -> Iterator[str]:
    """FEWSTEP_* and accelerate's variables with values that no stage accepts."""
    counts = (lambda: count_of("MICRO_BATCH", 1), lambda: count_of("BATCH", 1))
    for ask in (*counts, mixed_precision, least, share, depth):
        try:
            ask()
        except UserError as error:
            yield str(error)


def few_samples(chain: Chain) -> Iterator[str]:
    """Batches that leave a process without a sample, and optimizers that are not installed."""
    count = processes()
    for place, training in chain.trainings().items():
        if training.batch_size < count:
            yield (
                f"params.yaml: {place}.training.batch_size = {training.batch_size}: has no sample for each "
                f"of the {count} processes of accelerate's config; raise it or start fewer"
            )
        if training.optimizer == "adamw_8bit" and find_spec("bitsandbytes") is None:
            yield f"params.yaml: {place}.training.optimizer = 'adamw_8bit': `pip install bitsandbytes` first"


def processes() -> int:
    """Number of training processes in accelerate's config; 1 where another launcher starts them."""
    from accelerate.commands.config.config_args import default_config_file, load_config_from_file

    if switch("LAUNCH", "auto") != "auto" or not Path(default_config_file).is_file():
        return 1
    return getattr(load_config_from_file(None), "num_processes", 1)


def disk(chain: Chain) -> Iterator[str]:
    """Whether artifacts and training states fit on the disk.

    Where DVC cannot link, its cache has a second copy of each artifact, and shards of triplets are kept once
    more, for other groups. States are deleted at the end of their stage.
    """
    states, stages = AT_ONCE * largest(chain), plan(chain)
    needed = states + sum(stage.disk or 0 for stage in stages)
    if not cache_links():
        kept = (stage for stage in stages if stage.name.startswith("generate_triplets@"))
        needed += sum(stage.disk or 0 for stage in (*stages, *kept))
    free = shutil.disk_usage(".").free
    if needed > free:
        yield (
            f"disk: the chain writes about {needed / 1e9:.1f} GB, of which {states / 1e9:.1f} GB are "
            f"training states, {free / 1e9:.1f} GB are free here; free some space or move the project"
        )


def cache_links() -> bool:
    """Whether DVC makes an artifact and its copy in the cache one file here.

    With another first type than hard links it may copy folders.
    """
    if not DVC.is_dir():
        return False
    try:
        cache = settings()["cache"]
    except UserError:
        return False  # `repository` reports it
    folder = Path(cache.get("dir") or DVC)
    if cache.get("type", [])[:1] != ["hardlink"] or not folder.is_dir():
        return False
    with TemporaryDirectory(dir=folder) as there, TemporaryDirectory(dir=DVC) as here:
        file = Path(here) / "file"
        file.touch()
        try:
            (Path(there) / "link").hardlink_to(file)
        except OSError:
            return False
    return True
