"""Evaluation during training: a curve of measures, warnings of drift, and the best weights."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from torch import Tensor

from fewstep.config.training import StudentTrainingConfig
from fewstep.core.files import read_json, whole_folder, write_json
from fewstep.core.processes import barrier, is_main_process
from fewstep.training.group_state import named
from fewstep.training.sharding import host_copies
from fewstep.training.state import State

CURVE = "evaluations.json"
BEST = "best"


class Evaluations:
    """Evaluations of one training, in its folder.

    Every `evaluate_every` steps and at the last one, the weights are measured, or their EMA where there is
    one. After a kill, the training resumes at a saved state. Records of later steps are dropped, and the same
    weights are measured again. So curve and best weights are the same after a kill.
    """

    def __init__(self, state: State) -> None:
        self.state, training = state, state.method.training
        self.training = training if isinstance(training, StudentTrainingConfig) else None
        self.file, self.best = state.folder / CURVE, state.folder / BEST
        records = read_json(self.file)["curve"] if self.file.exists() else []
        self.curve: list[dict[str, Any]] = [record for record in records if record["step"] <= state.step]
        self.warned: set[str] = set()

    @property
    def due(self) -> bool:
        """Whether the current step is to be measured."""
        if self.training is None or not self.training.evaluate_every:
            return False
        step = self.state.step
        return step > 0 and (step % self.training.evaluate_every == 0 or step == self.training.steps)

    def measure(self) -> Mapping[str, float]:
        """Measure the current step unless that was done. All processes call this."""
        if self.curve and self.curve[-1]["step"] == self.state.step:
            return {}
        with self.state.kept_weights():
            values = self.state.method.evaluate()
            if not values:
                return {}
            record = {"step": self.state.step} | {name: round(v, 6) for name, v in values.items()}
            if self.keeps_best and self.is_best(record):
                self.save_best()
        self.curve.append(record)
        if is_main_process():
            write_json(self.file, {"curve": self.curve})
            self.warn()
        barrier()
        return {f"evaluation/{name}": value for name, value in values.items()}

    @property
    def keeps_best(self) -> bool:
        """Whether the model will be the best state instead of the last."""
        return self.training is not None and self.training.keep == "best"

    def is_best(self, record: Mapping[str, Any]) -> bool:
        """Whether the measure is lower than in every record before."""
        assert self.training is not None
        measure = self.training.measure
        return all(record[measure] < before[measure] for before in self.curve)

    def save_best(self) -> None:
        """Save the current weights as the best ones."""
        groups = self.state.groups.items()
        weights = host_copies(
            {k: w for label, group in groups for k, w in named(label, group.weights).items()}
        )
        if is_main_process():
            with whole_folder(self.best) as staging:
                save_file(weights, staging / "weights.safetensors")
                write_json(staging / "step.json", {"step": self.state.step})

    def weights(self) -> dict[str, Tensor]:
        """The best weights by name, "group/module/parameter"; empty where none are saved."""
        if not self.keeps_best or not self.best.exists():
            return {}
        return load_file(self.best / "weights.safetensors")

    def warn(self) -> None:
        """Print a warning, once per measure, when it exceeds its limit in two records in a row."""
        for name, limit in self.state.method.limits.items():
            since = beyond(self.curve, name, limit)
            if since is not None and name not in self.warned:
                self.warned.add(name)
                change = f"{100 * self.curve[-1][name]:+.0f} %, beyond {100 * limit:.0f} % since step {since}"
                print(
                    f"warning: {self.state.folder.name}: {name} drifts against the teacher's images: "
                    f"{change}; `training.keep: best` keeps the best state measured",
                    flush=True,
                )


def beyond(curve: Sequence[Mapping[str, Any]], name: str, limit: float) -> int | None:
    """The step since which a measure's absolute value exceeds the limit; None for fewer than two records."""
    outside = 0
    for record in reversed(curve):
        if abs(record.get(name, 0.0)) <= limit:
            break
        outside += 1
    return curve[-outside]["step"] if outside >= 2 else None


def read_curve(folder: Path) -> list[dict[str, Any]]:
    """The curve of a training in its folder; empty where it was not evaluated."""
    file = folder / CURVE
    return read_json(file)["curve"] if file.exists() else []
