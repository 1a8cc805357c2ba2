"""Runs variants of the chain: each becomes a DVC experiment, and shared stages run once.

    ablation(variants={"students.one_step.from": ["reflow", "halve-4"], "triplets.steps": [4, 8]})

Every variant has a clone of the workspace under `.dvc/tmp/ablations`. All clones use the workspace's cache. A
stage that is the same in several variants runs in the first of them. The others wait for it and take its
result from the cache.
"""

import hashlib
import itertools
import json
import re
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from dvc.dependency.param import ParamsDependency  # type: ignore[import-untyped]
from dvc.repo import Repo  # type: ignore[import-untyped]
from prefect import flow
from prefect.futures import PrefectFuture

from fewstep.config.base import PARAMS
from fewstep.core.errors import UserError
from flows.chain import THREADS, alone_in, finish, named, run
from flows.code import git
from flows.graph import Stage, stages_of
from flows.overrides import override, tried
from flows.process import StageFailed
from flows.publish import compare

CLONES = Path(".dvc/tmp/ablations")


@flow(name="ablation", task_runner=THREADS)
def ablation(variants: dict[str, list[Any]] | list[dict[str, Any]], targets: list[str] | None = None) -> None:
    """Run the chain once per variant and compare.

    variants: a grid (dotted keys of params.yaml -> list of values) or a list of overrides. targets: stages to
    end with; none: all.
    """
    root = Path.cwd()
    chosen = spread(variants)
    chains = {name: tried(root / PARAMS, overrides) for name, overrides in chosen.items()}
    tasks: dict[tuple[str, str], PrefectFuture[Any]] = {}
    with alone_in(root):
        clones = {name: clone(root, name, overrides) for name, overrides in chosen.items()}
        stages = {name: stages_of(folder, targets or []) for name, folder in clones.items()}
        first: dict[str, PrefectFuture[Any]] = {}
        with finish(tasks):
            for name, folder in clones.items():
                known = identities(folder, stages[name])
                for stage in stages[name]:
                    label = f"{name}: {stage.name}"
                    before = [tasks[name, need] for need in stage.needs]
                    before += [first[known[stage.name]]] if known[stage.name] in first else []
                    task = named(run, label).submit(stage, folder, False, [], wait_for=before)
                    tasks[name, stage.name] = task
                    first.setdefault(known[stage.name], task)
        for name, folder in clones.items():
            save(root, folder, name, stages[name])
    evaluated = {
        name: {
            model: counts
            for model, counts in chain.evaluate.models.items()
            if f"evaluate@{model}" in {stage.name for stage in stages[name]}
        }
        for name, chain in chains.items()
    }
    compare(root, clones, chosen, evaluated)


def spread(variants: Mapping[str, Any] | Sequence[Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """Name -> overrides; a grid becomes all its combinations. Raises UserError when nothing is overridden."""
    if isinstance(variants, Mapping):
        values = [value if isinstance(value, list) else [value] for value in variants.values()]
        listed = [dict(zip(variants, chosen, strict=True)) for chosen in itertools.product(*values)]
    else:
        listed = [dict(overrides) for overrides in variants]
    if not listed or not any(listed):
        raise UserError("variants: nothing to vary; give a mapping of keys to values, or a list of overrides")
    by_name: dict[str, dict[str, Any]] = {}
    for overrides in listed:
        words = [f"{key.rsplit('.', 1)[-1]} {json.dumps(value)}" for key, value in overrides.items()]
        name = re.sub(r"[^a-z0-9]+", "-", " ".join(words).lower()).strip("-") or "as-it-is"
        by_name[name if name not in by_name else f"{name}-{len(by_name)}"] = overrides
    return by_name


def clone(root: Path, name: str, overrides: Mapping[str, Any]) -> Path:
    """Clone the workspace, with uncommitted changes, and write the overrides into the clone's params.yaml.

    An earlier clone of this name is reused, with the states of its trainings. Raises UserError when the
    workspace is not a git repository with a commit, which experiments need.
    """
    folder = root / CLONES / name
    try:
        if not (folder / ".git").exists():
            git(root, "clone", "-q", "--shared", str(root), str(folder))
        git(folder, "fetch", "-q", "origin", "HEAD")
        git(folder, "reset", "-q", "--hard", "FETCH_HEAD")
        # Compared with the commit, not with the index, so that staged changes are included.
        changed = git(root, "diff", "-z", "--name-only", "--no-renames", "HEAD").split("\0")
        changed += git(root, "ls-files", "-z", "--others", "--exclude-standard").split("\0")
    except subprocess.CalledProcessError as error:
        raise UserError(f"{root}: experiments need a git repository with a commit: {error.stderr}") from None
    for file in filter(None, changed):
        (folder / file).parent.mkdir(parents=True, exist_ok=True)
        if (root / file).exists():
            shutil.copy2(root / file, folder / file)
        else:
            (folder / file).unlink(missing_ok=True)
    with Repo(str(root)) as repo:
        cache = repo.cache.local_cache_dir
    (folder / ".dvc/config.local").write_text(f"[cache]\n    dir = {cache}\n")
    override(folder, overrides)
    return folder


def identities(root: Path, stages: Sequence[Stage]) -> dict[str, str]:
    """Stage -> hash of its command, its params and its ancestors; equal hashes mean equal results."""
    hashes: dict[str, str] = {}
    with Repo(str(root)) as repo:
        known = {stage.name: stage for stage in repo.index.stages}
        for stage in stages:
            definition = known[stage.name]
            params = [dep.read_params() for dep in definition.deps if isinstance(dep, ParamsDependency)]
            what = [definition.cmd, params, [hashes[need] for need in stage.needs]]
            hashes[stage.name] = hashlib.sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()
    return hashes


def save(root: Path, folder: Path, name: str, stages: Sequence[Stage]) -> None:
    """Save these stages of a clone as an experiment of the workspace, which `dvc exp show` lists.

    Raises StageFailed with the error output of DVC or git.
    """
    # DVC commits the stages that it is given once more, a second each; `dvc repro` has committed them all.
    last = stages[-1].name
    try:
        subprocess.run(
            ["dvc", "exp", "save", "-q", "-f", "-n", name, last],
            cwd=folder,
            check=True,
            capture_output=True,
            text=True,
        )
        git(root, "fetch", "-q", str(folder), "+refs/exps/*:refs/exps/*")
    except subprocess.CalledProcessError as error:
        raise StageFailed(f"{name}: not saved as an experiment: {error.stderr.strip()}") from None
