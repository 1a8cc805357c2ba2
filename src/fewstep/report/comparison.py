"""The figures of each model, read strictly and checked to be comparable."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from fewstep.artifacts.manifest import Manifest, identity
from fewstep.core.errors import UserError
from fewstep.core.files import read_json
from fewstep.core.paths import EVALUATION_SET, EVALUATIONS, LOGS, METRICS, MODELS
from fewstep.evaluation.record import read_record
from fewstep.evaluation.schema import Metrics, Reference, Speed, SpeedLog, StepMetrics
from fewstep.report.lineage import read_manifest


@dataclass(frozen=True)
class Result:
    """A model's result in `steps` steps. `strip`: its images. `speed`: None where it was not timed."""

    steps: int
    metrics: StepMetrics
    strip: Path
    speed: Speed | None

    @property
    def distance(self) -> float:
        """Kernel distance to the real images."""
        return self.metrics.kernel_distance.value

    @property
    def rank(self) -> tuple[bool, float]:
        """Smaller is better: results without warnings first, then by distance."""
        return bool(self.metrics.flags), self.distance


@dataclass(frozen=True)
class Model:
    """An evaluated model. `place`: its position in the list, hence its colour. `machine`: where timed."""

    name: str
    place: int
    kind: str
    metrics: Metrics
    results: tuple[Result, ...]
    machine: str | None

    @property
    def best(self) -> Result:
        """The result of the best rank."""
        return min(self.results, key=lambda result: result.rank)


@dataclass(frozen=True)
class Comparison:
    """Models evaluated on the same prompts and the same noise. `real`: strip of the real images."""

    prompts: tuple[str, ...]
    noise: tuple[int, ...]
    real: Path
    reference: Reference
    models: tuple[Model, ...]

    @property
    def teacher(self) -> Result | None:
        """The teacher at its full step count, the base of ratios; None when it was not evaluated there."""
        results = [result for m in self.models if m.kind == "teacher" for result in m.results]
        return next((result for result in results if result.steps == self.reference.teacher_steps), None)

    @property
    def lead(self) -> tuple[Model, Result] | None:
        """The best-ranked student at the fewest evaluations, and that result; None without students."""
        results = [(m, result) for m in self.models if m.kind != "teacher" for result in m.results]
        return min(results, key=lambda pair: (pair[1].metrics.nfe, pair[1].rank), default=None)


def load(names: Sequence[str], root: Path) -> Comparison:
    """Read the earlier stages' outputs about the models `names` below `root`.

    Raises UserError naming the file that is missing, broken, or inconsistent with the rest.
    """
    if not names:
        raise UserError(
            "params.yaml: evaluate.models is empty, there is nothing to report; name at least one model"
        )
    folder = root / EVALUATION_SET
    Manifest.open(folder, "evaluation_set")
    listed = read_json(folder / "prompts.json")
    models = tuple(load_model(name, place, root) for place, name in enumerate(names))
    for model in models:
        for key in ("pictures", "reference", "features"):
            ours, first = getattr(model.metrics, key), getattr(models[0].metrics, key)
            if ours != first:
                raise UserError(
                    f"{root / METRICS / model.name}.json: {key} = {ours!r} cannot be compared with {first!r} "
                    f"of {models[0].name}; run `dvc repro evaluate@{model.name}`"
                )
    return Comparison(
        prompts=tuple(listed["prompts"]),
        noise=tuple(listed["noise"]),
        real=folder / "grid-real.png",
        reference=read_record(Reference, folder / "figures.json"),
        models=models,
    )


def load_model(name: str, place: int, root: Path) -> Model:
    """One model's figures and strips, checked to belong to the present model and evaluation set."""
    remedy = f"run `dvc repro evaluate@{name}`"
    file, strips = root / METRICS / f"{name}.json", root / EVALUATIONS / name
    if not file.exists() or not strips.exists():
        raise UserError(f"{strips if file.exists() else file}: not here yet; {remedy}")
    metrics = read_record(Metrics, file)
    if metrics.manifest != identity(root / MODELS / name):
        raise UserError(f"{file}: is about an earlier {root / MODELS / name}; {remedy}")
    if identity(root / EVALUATION_SET) not in Manifest.open(strips, "evaluation").made_from.values():
        raise UserError(f"{strips}: was drawn from an earlier {root / EVALUATION_SET}; {remedy}")
    timed = root / LOGS / "speed" / f"{name}.json"
    speed = read_record(SpeedLog, timed) if timed.exists() else None
    return Model(
        name=name,
        place=place,
        kind=read_manifest(root / MODELS / name).kind,
        metrics=metrics,
        results=tuple(
            Result(
                int(steps), figures, strips / f"grid-{steps}.png", speed.steps.get(steps) if speed else None
            )
            for steps, figures in sorted(metrics.steps.items(), key=lambda item: -int(item[0]))
        ),
        machine=speed.machine if speed else None,
    )
