"""The stages of dvc.yaml, their edges and what they ask of the machine, as DVC tells them."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import networkx as nx
from dvc.repo import Repo  # type: ignore[import-untyped]
from pydantic import Field

from fewstep.config.base import Section, validate
from fewstep.core.errors import UserError


class Demands(Section):
    """`meta:` of a stage in dvc.yaml."""

    gpus: int = Field(0, ge=0)
    """GPUs that it takes where there are any; a host without takes one CPU slot instead."""
    hours: float | None = Field(None, gt=0)
    """After so many it is stopped, with its state kept; none: never."""
    retries: int = Field(1, ge=0)
    """How often it is started again after what can pass (a killed process, a remote out of reach)."""


@dataclass(frozen=True)
class Stage:
    """One stage.

    name: as `dvc repro -s` takes it. needs: what it waits for, without what that implies. makes: whether
    anything comes of it that others may take; a rendering has no outs. always: it runs each time, for it
    looks at what lies outside the project.
    """

    name: str
    needs: tuple[str, ...]
    makes: bool
    demands: Demands
    always: bool = False


def stages_of(root: Path, targets: Iterable[str] = ()) -> list[Stage]:
    """The stages of a workspace that the targets need (all: none given), each after what it needs.

    Raises UserError on a target that is no stage.
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
    """The stages that neither changed nor come after one that did: nothing of theirs would run.

    Those that run each time count as unchanged: they have run before this is asked.
    """
    ordered = list(stages)
    with Repo(str(root)) as repo:
        status = repo.status(targets=[stage.name for stage in ordered])
    changed = {name for name, changes in status.items() if changes != ["always changed"]}
    idle: set[str] = set()
    for stage in ordered:
        if stage.name not in changed and idle.issuperset(stage.needs):
            idle.add(stage.name)
    return idle
