"""The stages of dvc.yaml, their edges and the resources they need, as DVC reports them."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import networkx as nx
from dvc.repo import Repo  # type: ignore[import-untyped]
from pydantic import Field

from fewstep.config.base import Section, validate
from fewstep.core.errors import UserError


class Demands(Section):
    """Resources and limits of a stage: its `meta:` in dvc.yaml."""

    gpus: int = Field(0, ge=0)
    """Number of GPUs. On a host without GPUs the stage takes one CPU slot instead."""
    hours: float | None = Field(None, gt=0)
    """Time limit, after which it is stopped with its state saved; none: no limit."""
    retries: int = Field(1, ge=0)
    """How often it is started again after a transient failure (a killed process, an unreachable remote)."""


@dataclass(frozen=True)
class Stage:
    """One stage.

    name: as `dvc repro -s` takes it. needs: the stages it waits for, without those that these wait for
    (transitive reduction). makes: whether it has outputs that other stages can use. always: whether it runs
    every time, because it checks inputs outside the project.
    """

    name: str
    needs: tuple[str, ...]
    makes: bool
    demands: Demands
    always: bool = False


def stages_of(root: Path, targets: Iterable[str] = ()) -> list[Stage]:
    """The targets and their ancestors in topological order; without targets, all stages of the workspace.

    Raises UserError on a target that is not a stage.
    """
    with Repo(str(root)) as repo:
        graph = nx.relabel_nodes(repo.index.graph, lambda stage: stage.name)
        demands = {stage.name: stage.meta or {} for stage in repo.index.graph}
        making = {stage.name for stage in repo.index.graph if stage.outs}
        always = {stage.name for stage in repo.index.graph if stage.always_changed}
    wanted = set(targets) or set(graph)
    if unknown := sorted(wanted - set(graph)):
        raise UserError(f"targets: {', '.join(unknown)}: no such stage; there are {', '.join(sorted(graph))}")
    wanted |= {name for target in wanted for name in nx.descendants(graph, target)}
    edges = nx.transitive_reduction(graph.subgraph(wanted))
    ordered = list(nx.lexicographical_topological_sort(edges.reverse()))
    return [
        Stage(
            name,
            tuple(sorted(edges.successors(name))),
            name in making,
            validate(Demands, demands[name], f"{name}.meta", Path("dvc.yaml")),
            name in always,
        )
        for name in ordered
    ]


def unchanged(root: Path, stages: Iterable[Stage]) -> set[str]:
    """The stages that need no run: neither they nor their ancestors changed.

    Stages that run every time count as unchanged, because they have run before this call.
    """
    ordered = list(stages)
    with Repo(str(root)) as repo:
        # Of the whole workspace: with targets, DVC would parse dvc.yaml and dvc.lock once for each.
        status = repo.status()
    changed = {name for name, changes in status.items() if changes != ["always changed"]}
    idle: set[str] = set()
    for stage in ordered:
        if stage.name not in changed and idle.issuperset(stage.needs):
            idle.add(stage.name)
    return idle
