"""Brings a foreign teacher into the chain: a diffusers folder, hub repository or single-file checkpoint."""

from pathlib import Path
from typing import Any

import diffusers
import torch
from diffusers import DiffusionPipeline
from huggingface_hub import ModelCard
from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, RepositoryNotFoundError

from fewstep.artifacts.folder import read_json
from fewstep.backbones.base import family, teacher_facts
from fewstep.backbones.pipeline import INDEX, LEFT_OUT, class_in, forget_origin, parts_of
from fewstep.config.teacher import ImportTeacherConfig
from fewstep.errors import UserError

SINGLE_FILE = ".safetensors"
CARD = "README.md"


def import_teacher(where: str, backbone: str, config: ImportTeacherConfig, folder: Path) -> dict[str, Any]:
    """Write the teacher into `folder`. Returns its manifest's facts.

    The folder holds no trace of the place it came from: a teacher's hash is its content's. Of a hub
    repository the facts keep the id and the commit. Raises UserError with the way out when it cannot be had.
    """
    known = family(backbone)
    source, origin = locate(where, config)
    adopted = known.of(class_in(source))
    pipeline = load_pipeline(getattr(diffusers, adopted.pipeline_class), source, config)
    pipeline.save_pretrained(folder)
    forget_origin(folder)
    return teacher_facts(backbone, adopted.open(folder)) | {"origin": origin, "licence": licence_of(source)}


def locate(where: str, config: ImportTeacherConfig) -> tuple[Path, dict[str, str] | None]:
    """The local folder or file, and what identifies it where it is on the hub."""
    local = Path(where).expanduser()
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
            where, f"{reason}; fetch it where there is a network with `hf download {where}`"
        ) from error
    return snapshot, {"repository": where, "revision": snapshot.name}


def refused(where: str, way_out: str) -> UserError:
    """What to say of a repository that cannot be had."""
    return UserError(f"params.yaml: teacher.load = [{where}]: cannot be loaded: {way_out}")


def load_pipeline(kind: Any, source: Path, config: ImportTeacherConfig) -> Any:
    """The pipeline that lies there, safetensors only. Raises UserError when it is another or broken."""
    options = {"dtype": getattr(torch, config.dtype), "local_files_only": True}
    try:
        if source.is_dir():
            check_index(source, kind.__name__)
            without = {name: None for name in LEFT_OUT if name in read_json(source / INDEX)}
            return kind.from_pretrained(
                source, use_safetensors=True, variant=config.variant, **options, **without
            )
        if source.suffix != SINGLE_FILE:
            raise UserError(f"{source}: a single file must be {SINGLE_FILE}; others may run code when loaded")
        return kind.from_single_file(
            source, config=config.config, **options | {"local_files_only": config.config is not None}
        )
    except (OSError, ValueError, KeyError) as error:
        reason = str(error).strip().splitlines()[0]
        raise UserError(f"{source}: cannot be loaded as a {kind.__name__}: {reason}") from error


def check_index(folder: Path, wanted: str) -> None:
    """Raises UserError when the folder is no such pipeline, or has parts whose code is not a library's."""
    if not (folder / INDEX).is_file():
        raise UserError(f"{folder}: no diffusers pipeline ({INDEX} is missing)")
    if (found := class_in(folder)) != wanted:
        raise UserError(
            f"{folder}: is a {found}, this teacher.backbone takes a {wanted}; choose the other family"
        )
    parts_of(folder)


def licence_of(source: Path) -> str | None:
    """The licence that the model card beside the weights names."""
    card = (source if source.is_dir() else source.parent) / CARD
    try:
        return ModelCard.load(card).data.to_dict().get("license") if card.is_file() else None
    except (ValueError, OSError):
        return None
