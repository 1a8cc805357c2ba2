"""The whole of params.yaml, and what its sections demand of each other."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from pydantic import Field

from fewstep.config.base import INPUTS, PARAMS, Place, ProjectPath, Section, load_params, validate
from fewstep.config.data import DataConfig
from fewstep.config.encode import EncodeConfig
from fewstep.config.evaluate import EvaluateConfig, EvaluationSetConfig
from fewstep.config.export import ExportConfig
from fewstep.config.judge import JudgeConfig
from fewstep.config.sampling import SamplingConfig
from fewstep.config.teacher import ImportTeacherConfig, TeacherConfig, TrainTeacherConfig
from fewstep.config.training import TrainingConfig
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
    inputs: dict[str, Place] = Field(default_factory=dict)
    """Name -> folder, file or URL; the name stands for it in `data.path` and `teacher.load`."""
    data: DataConfig
    judge: JudgeSwitch
    features: ProjectPath
    teacher: TeacherConfig
    sampling: SamplingConfig
    encode_data: dict[str, EncodeConfig]
    triplets: TripletsConfig
    train_judge: JudgeConfig | None = None
    train_teacher: TrainTeacherConfig | None = None
    import_teacher: ImportTeacherConfig = ImportTeacherConfig()
    reflow: dict[str, reflow.Config]
    halve: dict[str, halve.Config]
    students: dict[str, Any]
    evaluation_set: EvaluationSetConfig
    evaluate: EvaluateConfig
    export: dict[str, ExportConfig]

    def objectives(self) -> dict[str, ObjectiveConfig]:
        """Model -> its objective's parameters, for every model that is learned from another."""
        return self.reflow | {f"halve-{name}": c for name, c in self.halve.items()} | self.students

    def trainings(self) -> dict[str, TrainingConfig]:
        """Section of params.yaml -> settings of every training of the chain."""
        found = {section(self, name): config.training for name, config in self.objectives().items()}
        if self.judge.train and self.train_judge:
            found["train_judge"] = self.train_judge.training
        if self.teacher.train and self.train_teacher:
            found |= {
                "train_teacher.vae": self.train_teacher.vae.training,
                "train_teacher": self.train_teacher.training,
            }
        return found

    def method_of(self, name: str) -> str:
        """The file of `objectives/` that makes a model."""
        if name in self.reflow:
            return "reflow"
        return "halve" if name.startswith("halve-") else str(self.students[name].method)


def load_chain(path: Path = PARAMS) -> Chain:
    """params.yaml, all of it valid and consistent. Raises UserError with one line per fault."""
    params = load_params(path)
    inputs = validate(dict[str, str], params.get(INPUTS) or {}, INPUTS, path)
    chain = validate(Chain, params, "", path, inputs)
    students = {}
    for name, values in chain.students.items():
        where = f"students.{name}"
        if not isinstance(values, Mapping) or "method" not in values:
            raise UserError(f"{path}: {where}.method is missing")
        try:
            method = objective_module(str(values["method"]))
        except UserError as error:
            raise UserError(f"{path}: {where}.method = {error}") from None
        students[name] = validate(method.Config, values, where, path, inputs)
    chain = chain.model_copy(update={"students": students})
    faults = list(inconsistencies(chain))
    if faults:
        raise UserError("\n".join(f"{path}: {fault}" for fault in faults))
    return chain


def inconsistencies(chain: Chain) -> Iterator[str]:
    """What is wrong between the sections, one line each."""
    objectives = chain.objectives()
    known = ["teacher", *objectives]
    for place, names in (("reflow", chain.reflow), ("students", chain.students)):
        for name in names:
            taken = name == "teacher" or name.startswith("halve-")
            if taken or (place == "students" and name in chain.reflow):
                yield f"{place}.{name}: this name is taken; choose another"
    for name, config in objectives.items():
        start = f"{section(chain, name)}.from = {config.from_!r}"
        if config.from_ not in known:
            yield f"{start}: no such model; there are {', '.join(known)}"
        elif name in ancestors(name, objectives):
            yield f"{start}: {name} would be made from itself"
        if config.guidance_embedding and chain.triplets.guidance is None:
            yield f"{section(chain, name)}.guidance_embedding: triplets.guidance is null, so there is but one"
    for name, round_ in chain.halve.items():
        if round_.data == "encoded" and "train" not in chain.encode_data:
            yield f"halve.{name}.data = 'encoded': needs an entry `train` in encode_data"
        line = objectives.keys() & {f"halve-{name}", *ancestors(f"halve-{name}", objectives)}
        if round_.data == "encoded" and any(objectives[model].guidance_embedding for model in line):
            yield f"halve.{name}.data = 'encoded': real pictures have no guidance for a guidance_embedding"
    for split in chain.encode_data.keys() - {"train", "heldout"}:
        yield f"encode_data.{split}: no such split; there are train, heldout"
    for name in chain.evaluate.models:
        if name not in known:
            yield f"evaluate.models.{name}: no such model; there are {', '.join(known)}"
    for name in chain.export:
        if name == "teacher":
            yield "export.teacher: the teacher is a pipeline already; export its students"
        elif name not in chain.evaluate.models:
            yield f"export.{name}: an export's card tells its figures; evaluate.models has no {name}"
    if chain.features == JUDGE and not chain.judge.train:
        yield f"features = {JUDGE}: judge.train is [], so there is none; use {TEACHER} or an Inception file"
    if not chain.evaluate.models:
        yield "evaluate.models is empty, so there is nothing to report; name at least one model"
    if chain.judge.train and chain.data.source == "folder":
        table = Path(chain.data.path or "") / "metadata.jsonl"
        if not table.is_file():
            yield f"judge.train: there is no {table} with labels to train a judge on; set it to []"
    for place, wanted in (("judge", chain.judge.train), ("teacher", chain.teacher.train)):
        if wanted and getattr(chain, f"train_{place}") is None:
            yield f"train_{place} is missing; {place}.train asks for it"
    if chain.teacher.train and chain.train_teacher is not None:
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


def section(chain: Chain, model: str) -> str:
    """Where params.yaml describes a model."""
    if model.startswith("halve-"):
        return f"halve.{model.removeprefix('halve-')}"
    return f"{'reflow' if model in chain.reflow else 'students'}.{model}"
