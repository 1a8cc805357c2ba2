"""Loads imported pipelines part by part, strictly: safetensors only, and no weight may be missing."""

import importlib
from pathlib import Path
from typing import Any

import diffusers
import torch
from safetensors.torch import load_file
from torch import nn

from fewstep.backbones.configurations import INDEX, read_object
from fewstep.backbones.parts import LEFT_OUT, component_names
from fewstep.backbones.pipeline import DiffusersBackbone
from fewstep.backbones.single_file import with_averages
from fewstep.backbones.weight_files import variant_of
from fewstep.config.teacher import ImportTeacherConfig
from fewstep.core.errors import UserError

HOLES = "some of its weights are missing; it is cut, or import_teacher.config names a model of another size"


def load_folder(adapter: type[DiffusersBackbone], folder: Path, config: ImportTeacherConfig) -> Any:
    """Load the pipeline in a folder that has no `config_faults`. Raises UserError naming the part."""
    kind = getattr(diffusers, adapter.pipeline_class)
    names = component_names(kind)
    left_out = {*LEFT_OUT, *without(adapter, config)}
    index = read_object(folder / INDEX)
    parts = dict.fromkeys(names)
    for name in names:
        entry = index.get(name)
        if isinstance(entry, list) and entry[0] is not None and name not in left_out:
            library, class_name = entry
            class_name = adapter.net_class if name == adapter.net_part else class_name
            parts[name] = load_part(library, class_name, folder / name, config)
    _, settings = kind._get_signature_keys(kind)
    kept = {key: index[key] for key in settings if key in index}
    return kind(**parts, **kept | dict(adapter.pipeline_options))


def load_part(library: str, class_name: str, folder: Path, config: ImportTeacherConfig) -> Any:
    """Load a part of a folder. Raises UserError naming it, also for missing or unexpected weights."""
    try:
        kind = getattr(importlib.import_module(library), class_name)
        if not issubclass(kind, nn.Module):
            return kind.from_pretrained(folder, local_files_only=True)
        part, info = kind.from_pretrained(
            folder,
            dtype=getattr(torch, config.dtype),
            variant=variant_of(folder, config.variant),
            local_files_only=True,
            use_safetensors=True,
            output_loading_info=True,
        )
    except MemoryError:
        raise
    except Exception as error:  # the loaders raise errors of any type on a malformed file
        if is_out_of_memory(error):
            raise
        raise UserError(f"{folder}: cannot be loaded as a {class_name}: {first_line(error)}") from error
    if missing := sorted(info["missing_keys"]):
        raise UserError(
            f"{folder}: {len(missing)} weights that {class_name} needs are in none of its files, "
            f"{missing[0]} first; its config.json is another model's, or the files are incomplete"
        )
    if isinstance(part, diffusers.ModelMixin) and (extra := sorted(info["unexpected_keys"])):
        raise UserError(
            f"{folder}: its files have {len(extra)} weights that its config.json has no place for, "
            f"{extra[0]} first; it is another model's"
        )
    return part


def load_single_file(adapter: type[DiffusersBackbone], file: Path, config: ImportTeacherConfig) -> Any:
    """Load the pipeline in a single file. Raises UserError naming the file and what is missing."""
    kind = getattr(diffusers, adapter.pipeline_class)
    options: dict[str, Any] = {
        "config": config.config,
        "local_files_only": config.local_files_only or config.config is not None,
    }
    parts: dict[str, Any] = dict.fromkeys(without(adapter, config))
    try:
        if config.weights == "ema":
            averages = with_averages(load_file(file))
            net = getattr(diffusers, adapter.net_class)
            place = {"subfolder": adapter.net_part} if config.config else {}
            parts[adapter.net_part] = net.from_single_file(averages, **options, **place)
        pipeline = kind.from_single_file(str(file), **options, **parts)
    except MemoryError:
        raise
    except Exception as error:  # diffusers raises errors of any type on a malformed file
        if is_out_of_memory(error):
            raise
        reason = HOLES if "meta tensor" in str(error) else first_line(error)
        raise UserError(f"{file}: cannot be loaded as a {kind.__name__}: {reason}") from error
    for name, part in pipeline.components.items():
        # The loader of text encoders leaves missing weights on the meta device; other loaders raise.
        empty = [key for key, value in part.named_parameters() if value.is_meta] if is_network(part) else []
        if empty:
            raise UserError(
                f"{file}: cannot be loaded as a {kind.__name__}: {HOLES} ({name}: {empty[0]} is the first)"
            )
    # Cast after loading: the loader would also cast missing (meta) weights, and fail.
    return pipeline.to(getattr(torch, config.dtype))


def without(adapter: type[DiffusersBackbone], config: ImportTeacherConfig) -> list[str]:
    """The parts that `import_teacher.without` names, and those left out with them."""
    return [name for part in config.without for name in (part, *adapter.optional_parts.get(part, ()))]


def set_prediction(pipeline: Any, prediction: str | None, zero_snr: bool) -> None:
    """Set the scheduler's prediction type and zero terminal SNR as the user or the file states them."""
    if prediction is None and not zero_snr:
        return
    changes: dict[str, Any] = {"prediction_type": str(prediction)} if prediction else {}
    kind = type(pipeline.scheduler)
    if zero_snr:
        changes |= {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}
        kind = kind if "rescale_betas_zero_snr" in pipeline.scheduler.config else diffusers.DDIMScheduler
    pipeline.scheduler = kind.from_config(pipeline.scheduler.config, **changes)


def is_network(part: Any) -> bool:
    """Whether a part has weights."""
    return isinstance(part, nn.Module)


def is_out_of_memory(error: Exception) -> bool:
    """Whether memory ran out, so that the file is not at fault."""
    return isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error)


def first_line(error: Exception) -> str:
    """First line of an exception's message; its class name if it has none."""
    lines = str(error).strip().splitlines()
    return lines[0].strip() if lines else type(error).__name__
