"""The whole of params.yaml, and what its sections demand of each other."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from pydantic import Field

from fewstep.config.base import PARAMS, Section, load_params, validate
from fewstep.config.data import DataConfig
from fewstep.config.evaluate import EvaluateConfig, EvaluationSetConfig
from fewstep.config.judge import JudgeConfig
from fewstep.config.sampling import SamplingConfig
from fewstep.config.teacher import (
    AdoptTeacherConfig,
    ImportTeacherConfig,
    TeacherConfig,
    TrainTeacherConfig,
)
from fewstep.config.triplets import TripletsConfig
from fewstep.errors import UserError
from fewstep.layout import JUDGE, TEACHER
from fewstep.objectives import halve, reflow
from fewstep.objectives.ingredients import ObjectiveConfig
from fewstep.objectives.learn import objective_module


class JudgeSwitch(Section):
    """The `judge` section."""

    train: tuple[str, ...] = Field(max_length=1)
    """[NAME]: train a judge, as `train_judge` says; []: none, the data have no labels."""


class Chain(Section):
    """Every section, as written."""

    seed: int = Field(ge=0)
    data: DataConfig
    judge: JudgeSwitch
    features: Path
    teacher: TeacherConfig
    sampling: SamplingConfig
    triplets: TripletsConfig
    train_judge: JudgeConfig
    train_teacher: TrainTeacherConfig
    import_teacher: ImportTeacherConfig = ImportTeacherConfig()
    adopt_teacher: AdoptTeacherConfig = AdoptTeacherConfig()
    reflow: reflow.Config
    halve: dict[str, halve.Config]
    students: dict[str, Any]
    evaluation_set: EvaluationSetConfig
    evaluate: EvaluateConfig

    def objectives(self) -> dict[str, ObjectiveConfig]:
        """Model -> its objective's parameters, for every model that is learned from another."""
        return (
            {"reflow": self.reflow} | {f"halve-{name}": c for name, c in self.halve.items()} | self.students
        )


def load_chain(path: Path = PARAMS) -> Chain:
    """params.yaml, all of it valid and consistent. Raises UserError with one line per fault."""
    chain = validate(Chain, load_params(path), "", path)
    students = {}
    for name, values in chain.students.items():
        where = f"students.{name}"
        if not isinstance(values, Mapping) or "method" not in values:
            raise UserError(f"{path}: {where}.method is missing")
        students[name] = validate(objective_module(str(values["method"])).Config, values, where, path)
    chain = chain.model_copy(update={"students": students})
    faults = list(inconsistencies(chain))
    if faults:
        raise UserError("\n".join(f"{path}: {fault}" for fault in faults))
    return chain


def inconsistencies(chain: Chain) -> Iterator[str]:
    """What is wrong between the sections, one line each."""
    objectives = chain.objectives()
    known = ["teacher", *objectives]
    for name in chain.students:
        if name in ("teacher", "reflow") or name.startswith("halve-"):
            yield f"students.{name}: this name is taken; choose another"
    for name, config in objectives.items():
        if config.from_ not in known:
            yield f"{section(name)}.from = {config.from_!r}: no such model; there are {', '.join(known)}"
        elif name in ancestors(name, objectives):
            yield f"{section(name)}.from = {config.from_!r}: {name} would be made from itself"
    for name in chain.evaluate.models:
        if name not in known:
            yield f"evaluate.models.{name}: no such model; there are {', '.join(known)}"
    if chain.features == JUDGE and not chain.judge.train:
        yield f"features = {JUDGE}: judge.train is [], so there is none; use {TEACHER} or an Inception file"
    if chain.judge.train and chain.data.source == "folder":
        yield "judge.train: a folder has no labels to train a judge on; set it to []"
    if chain.teacher.train:
        factor = 2 ** (len(chain.train_teacher.vae.channels) + len(chain.train_teacher.net.channels) - 2)
        if chain.data.resolution % factor:
            yield f"data.resolution = {chain.data.resolution}: train_teacher needs a multiple of {factor}"


def ancestors(name: str, objectives: Mapping[str, ObjectiveConfig]) -> set[str]:
    """The models that `name` is made from, itself among them when they form a circle."""
    found: set[str] = set()
    while name in objectives and objectives[name].from_ not in found:
        name = objectives[name].from_
        found.add(name)
    return found


def section(model: str) -> str:
    """Where params.yaml describes a model."""
    if model.startswith("halve-"):
        return f"halve.{model.removeprefix('halve-')}"
    return model if model == "reflow" else f"students.{model}"
