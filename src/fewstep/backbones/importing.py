"""Imports a teacher trained elsewhere: a diffusers folder, hub repository or single-file checkpoint."""

import gc
from pathlib import Path
from typing import Any

from diffusers import DiffusionPipeline
from huggingface_hub import ModelCard
from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, RepositoryNotFoundError

from fewstep.backbones.configurations import INDEX, read_object
from fewstep.backbones.loading import load_folder, load_single_file, set_prediction
from fewstep.backbones.model import teacher_metadata
from fewstep.backbones.parts import forget_origin
from fewstep.backbones.pipeline import DiffusersBackbone
from fewstep.backbones.proof import prove
from fewstep.backbones.registry import family
from fewstep.backbones.single_file import Marks, marks_of
from fewstep.backbones.understood import config_faults, teacher_faults
from fewstep.backbones.weight_files import read_header
from fewstep.config.teacher import ImportTeacherConfig
from fewstep.core.errors import UserError
from fewstep.diffusion.denoiser import Prediction

CARD = "README.md"


def import_teacher(where: str, backbone: str, config: ImportTeacherConfig, folder: Path) -> dict[str, Any]:
    """Write the teacher into `folder`. Returns the metadata for its manifest.

    The folder does not record where it came from: a teacher's hash depends on its content only. For a hub
    repository, the metadata hold the id and the commit. Before it is accepted, the teacher has to encode,
    decode and take one sampling step, see proof.py. Raises UserError with a remedy if it cannot be loaded, is
    not supported or fails that test.
    """
    known = family(backbone)
    source, origin = locate(where, config)
    if faults := teacher_faults(source, backbone, config):
        raise UserError("\n".join(faults))
    adopted, marks = write(source, known, config, folder)
    if faults := config_faults(folder, adopted, ImportTeacherConfig(without=config.without)):
        raise UserError("\n".join(line.replace(str(folder), str(source)) for line in faults))
    opened = adopted.open(folder)
    weights = config.weights if source.is_file() else config.variant or "plain"
    other = "; it also has EMA weights, import_teacher.weights: ema" if marks.averages else ""
    by = f" ({marks.source})" if marks.source else ""
    print(
        f"weights: {weights}{other if weights == 'plain' else ''}; prediction: {opened.prediction}{by}; "
        f"proof: {prove(opened, source)}",
        flush=True,
    )
    provenance = {"origin": origin, "licence": licence_of(source), "weights": weights}
    return teacher_metadata(backbone, opened) | provenance


def write(
    source: Path, known: type[DiffusersBackbone], config: ImportTeacherConfig, folder: Path
) -> tuple[type[DiffusersBackbone], Marks]:
    """Load the pipeline and save it. Returns its adapter, and what user and file state about its training.

    The weights are freed before anything else is loaded.
    """
    if source.is_dir():
        adopted = known.of(read_object(source / INDEX).get("_class_name"))
        prediction = config.prediction
        marks = Marks(Prediction(prediction), source="import_teacher.prediction") if prediction else Marks()
        pipeline = load_folder(adopted, source, config)
    else:
        adopted, marks = known, marks_of(read_header(source), config.prediction)
        pipeline = load_single_file(adopted, source, config)
    set_prediction(pipeline, marks.prediction, marks.zero_snr)
    pipeline.save_pretrained(folder)
    forget_origin(folder)
    del pipeline
    gc.collect()
    return adopted, marks


def locate(where: str, config: ImportTeacherConfig) -> tuple[Path, dict[str, str] | None]:
    """The local folder or file, and the hub repository and commit that it came from, if any."""
    local = Path(where)
    if local.exists():
        return local, None
    if where.startswith((".", "/", "~")):
        raise UserError(f"params.yaml: teacher.load = [{where}]: no such file or folder")
    try:
        snapshot = Path(
            DiffusionPipeline.download(
                where,
                revision=config.revision,
                variant=config.variant,
                local_files_only=config.local_files_only,
                use_safetensors=True,
                **dict.fromkeys(config.without),
            )
        )
    except GatedRepoError as error:
        raise refused(
            where, f"accept its licence at https://huggingface.co/{where}, then `hf auth login`"
        ) from error
    except RepositoryNotFoundError as error:
        raise refused(
            where, "no such repository, or a private one: check its name, or `hf auth login`"
        ) from error
    except (HfHubHTTPError, OSError, ValueError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise refused(
            where, f"{reason}; fetch it on a machine with network access: `hf download {where}`"
        ) from error
    return snapshot, {"repository": where, "revision": snapshot.name}


def refused(where: str, way_out: str) -> UserError:
    """The error for a repository that cannot be loaded, with a remedy."""
    return UserError(f"params.yaml: teacher.load = [{where}]: cannot be loaded: {way_out}")


def licence_of(source: Path) -> str | None:
    """The licence that the model card beside the weights names."""
    card = (source if source.is_dir() else source.parent) / CARD
    try:
        return ModelCard.load(card).data.to_dict().get("license") if card.is_file() else None
    except (ValueError, OSError):
        return None
