"""The whole of params.yaml, and the consistency checks between its sections."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import Field

from fewstep.config.base import INPUTS, PARAMS, Place, ProjectPath, Section, load_params, validate
from fewstep.config.classifier import ClassifierConfig
from fewstep.config.data import DataConfig
from fewstep.config.encode import EncodeConfig
from fewstep.config.evaluate import EvaluateConfig, EvaluationSetConfig
from fewstep.config.export import ExportConfig
from fewstep.config.sampling import SamplingConfig
from fewstep.config.teacher import ImportTeacherConfig, TeacherConfig, TrainTeacherConfig
from fewstep.config.training import TrainingConfig
from fewstep.config.triplets import TripletsConfig
from fewstep.core.errors import UserError
from fewstep.core.paths import JUDGE, TEACHER
from fewstep.methods import compress, decoder, halve, reflow
from fewstep.students.learn import method_module

RESERVED = ("teacher", "vae", "judge", "evaluation", "triplets", "sample", "size", "nfiles")
"""Names that no model may have: the prefixes, before the slash, of other random streams' names, and the keys
that DVC's run cache overlooks."""

MODEL_SECTIONS = ("compress", "reflow", "halve", "students", "decoder")
"""Sections of params.yaml whose entries are models that are made from another one."""


class ClassifierSwitch(Section):
    """The `judge` section."""

    train: tuple[str, ...] = Field(max_length=1)
    """[NAME]: train a classifier, with the section `train_judge`; []: none, the data have no labels."""


@dataclass(frozen=True)
class ChainModel:
    """A model that is made from another one.

    section, key: where params.yaml describes it. config: its method's parameters.
    """

    section: str
    key: str
    config: Any

    @property
    def name(self) -> str:
        """The name of its folder: the key, for rounds of halving with the prefix `halve-`."""
        return f"halve-{self.key}" if self.section == "halve" else self.key

    @property
    def place(self) -> str:
        """`section.key`."""
        return f"{self.section}.{self.key}"

    @property
    def training(self) -> TrainingConfig | None:
        """Settings of its training; None: it is not trained."""
        training: TrainingConfig | None = self.config.training
        return training

    @property
    def method(self) -> str:
        """The file of `methods/` that makes it."""
        return str(self.config.method) if self.section == "students" else self.section


class Chain(Section):
    """All sections of params.yaml."""

    seed: int = Field(ge=0)
    inputs: dict[str, Place] = Field(default_factory=dict)
    """Name -> folder, file or URL; the name stands for it in `data.path` and `teacher.load`."""
    data: DataConfig
    judge: ClassifierSwitch
    features: ProjectPath
    teacher: TeacherConfig
    sampling: SamplingConfig
    encode_data: dict[str, EncodeConfig]
    triplets: TripletsConfig
    train_judge: ClassifierConfig | None = None
    train_teacher: TrainTeacherConfig | None = None
    import_teacher: ImportTeacherConfig = ImportTeacherConfig()
    compress: dict[str, compress.Config]
    reflow: dict[str, reflow.Config]
    halve: dict[str, halve.Config]
    students: dict[str, Any]
    decoder: dict[str, decoder.Config]
    evaluation_set: EvaluationSetConfig
    evaluate: EvaluateConfig
    export: dict[str, ExportConfig]

    def models(self) -> dict[str, ChainModel]:
        """Name -> every model that is made from another one."""
        return {model.name: model for model in self.entries()}

    def entries(self) -> list[ChainModel]:
        """Every entry of the sections whose entries are models."""
        return [
            ChainModel(section, key, config)
            for section in MODEL_SECTIONS
            for key, config in getattr(self, section).items()
        ]

    def trainings(self) -> dict[str, TrainingConfig]:
        """Section of params.yaml -> settings of every training of the chain."""
        settings = {model.place: model.training for model in self.models().values() if model.training}
        if self.judge.train and self.train_judge:
            settings["train_judge"] = self.train_judge.training
        if self.teacher.train and self.train_teacher:
            settings |= {
                "train_teacher.vae": self.train_teacher.vae.training,
                "train_teacher": self.train_teacher.training,
            }
        return settings


def load_chain(path: Path = PARAMS) -> Chain:
    """Read and validate params.yaml, with the checks between sections. Raises UserError, a line per fault."""
    params = load_params(path)
    inputs = validate(dict[str, str], params.get(INPUTS) or {}, INPUTS, path)
    chain = validate(Chain, params, "", path, inputs)
    students = {}
    for name, values in chain.students.items():
        where = f"students.{name}"
        if not isinstance(values, Mapping) or "method" not in values:
            raise UserError(f"{path}: {where}.method is missing")
        try:
            method = method_module(str(values["method"]))
        except UserError as error:
            raise UserError(f"{path}: {where}.method = {error}") from None
        students[name] = validate(method.Config, values, where, path, inputs)
    chain = chain.model_copy(update={"students": students})
    faults = list(inconsistencies(chain))
    if faults:
        raise UserError("\n".join(f"{path}: {fault}" for fault in faults))
    return chain


def inconsistencies(chain: Chain) -> Iterator[str]:
    """Contradictions between the sections, one line each."""
    made = chain.models()
    known = ["teacher", *made]
    entries = chain.entries()
    names = [model.name for model in entries]
    for model in entries:
        name, reserved = model.name, model.section != "halve" and model.name.startswith("halve-")
        if name in RESERVED or reserved or names.count(name) > 1:
            yield f"{model.place}: this name is taken or reserved; choose another"
    for name, model in made.items():
        start = f"{model.place}.from = {model.config.from_!r}"
        if model.config.from_ not in known:
            yield f"{start}: no such model; there are {', '.join(known)}"
        elif name in ancestors(name, made):
            yield f"{start}: {name} would be made from itself"
        embeds = model.config.guidance_embedding and not model.config.draws_guidance
        if embeds and chain.triplets.guidance is None:
            yield f"{model.place}.guidance_embedding: triplets.guidance is null, so there is only one scale"
        if model.config.data != "encoded":
            continue
        if "train" not in chain.encode_data:
            yield f"{model.place}.data = 'encoded': needs an entry `train` in encode_data"
        line = made.keys() & {name, *ancestors(name, made)}
        if not model.config.draws_guidance and any(made[each].config.guidance_embedding for each in line):
            yield f"{model.place}.data = 'encoded': real images have no guidance for a guidance_embedding"
    for split in chain.encode_data.keys() - {"train", "heldout"}:
        yield f"encode_data.{split}: no such split; there are train, heldout"
    for name in chain.evaluate.models:
        if name not in known:
            yield f"evaluate.models.{name}: no such model; there are {', '.join(known)}"
    for name in chain.export:
        if name == "teacher":
            yield "export.teacher: the teacher is a pipeline already; export its students"
        elif name not in chain.evaluate.models:
            yield f"export.{name}: an export's card reports its figures; evaluate.models has no {name}"
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


def ancestors(name: str, models: Mapping[str, ChainModel]) -> set[str]:
    """The models that `name` is made from, including itself when they form a cycle."""
    names: set[str] = set()
    while name in models and models[name].config.from_ not in names:
        name = models[name].config.from_
        names.add(name)
    return names
