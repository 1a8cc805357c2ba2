"""The folder of an evaluation set.

It holds `prompts.json` (prompts, labels, noise indices, groups of equal prompts), `real.*` (observations
of a real image per prompt), `reference.safetensors` (features of the reference images),
`training.safetensors` (layout of training images), `teacher-images.safetensors` and `teacher.*` (the
teacher's images at its full step count and their observations), `figures.json` (the floor's and the
teacher's figures), `grid-real.png`.
"""

from collections.abc import Mapping
from pathlib import Path

from safetensors.torch import load_file, save_file
from torch import Tensor

from fewstep.artifacts.manifest import Manifest
from fewstep.core.files import read_json, whole_folder, write_json
from fewstep.core.keyed import Key
from fewstep.evaluation.evaluation_set import EvaluationSet, Prompts
from fewstep.evaluation.figures import Yardstick
from fewstep.evaluation.grid import write_strip
from fewstep.evaluation.kernel import KERNELS
from fewstep.evaluation.observations import Observations
from fewstep.evaluation.record import read_record, write_record
from fewstep.evaluation.schema import Reference


def save(made: EvaluationSet, grid: Tensor, out: Path, made_from: Mapping[str, Path]) -> None:
    """Write the folder."""
    on = made.yardstick
    with whole_folder(out) as staging:
        write_json(
            staging / "prompts.json",
            {
                "prompts": list(made.prompts.prompts),
                "labels": list(on.labels),
                "noise": list(range(len(made.prompts))),
                "groups": [list(group) for group in on.groups],
            },
        )
        on.real.save(staging, "real")
        made.teacher_seen.save(staging, "teacher")
        save_file({"features": on.reference.contiguous()}, staging / "reference.safetensors")
        save_file({"layout": on.training.contiguous()}, staging / "training.safetensors")
        save_file({"images": made.teacher}, staging / "teacher-images.safetensors")
        write_record(staging / "figures.json", made.reference)
        write_strip(staging / "grid-real.png", grid)
        metadata = {
            "noise": {"seed": made.prompts.noise.seed, "stream": made.prompts.noise.stream},
            "grid": made.grid,
            "near": on.near,
            "hidden": list(on.hidden),
            "kernel": next(name for name, kernel in KERNELS.items() if kernel is on.kernel),
        }
        Manifest.seal(staging, "evaluation_set", metadata, made_from)


def load(folder: Path) -> EvaluationSet:
    """Read the folder. Raises UserError when it is incomplete."""
    metadata = Manifest.open(folder, "evaluation_set").facts
    listed = read_json(folder / "prompts.json")
    yardstick = Yardstick(
        labels=listed["labels"],
        groups=listed["groups"],
        real=Observations.load(folder, "real"),
        reference=load_file(folder / "reference.safetensors")["features"],
        training=load_file(folder / "training.safetensors")["layout"],
        near=metadata["near"],
        hidden=metadata["hidden"],
        kernel=KERNELS[metadata["kernel"]],
    )
    return EvaluationSet(
        Prompts(listed["prompts"], len(listed["labels"]), Key(**metadata["noise"])),
        yardstick,
        load_file(folder / "teacher-images.safetensors")["images"],
        Observations.load(folder, "teacher"),
        read_record(Reference, folder / "figures.json"),
        metadata["grid"],
    )
