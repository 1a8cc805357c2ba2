"""Finds what an adapter does not support in a teacher, by file and key, before any weight is read."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from fewstep.backbones.configurations import INDEX, Configurations, fault
from fewstep.backbones.networks import OLD_NAMES, network_faults
from fewstep.backbones.parts import LEFT_OUT, LIBRARIES
from fewstep.backbones.pipeline import DiffusersBackbone
from fewstep.backbones.registry import family
from fewstep.backbones.schedulers import FLOW_MATCH, scheduler_faults
from fewstep.backbones.single_file import single_file_faults
from fewstep.backbones.weight_files import weight_faults
from fewstep.config.teacher import ImportTeacherConfig
from fewstep.core.errors import UserError

HARMLESS = ("requires_safety_checker", "add_watermarker", "force_zeros_for_empty_prompt")
"""Settings of stock pipelines that are supported, or do not change the images."""


def teacher_faults(place: Path, backbone: str, config: ImportTeacherConfig) -> list[str]:
    """Why a folder or single file cannot be imported, one line per fault; empty: no fault was found.

    backbone: name of a family. Reads names, headers and JSON, no tensor.
    """
    adapter = family(backbone)
    if place.is_dir():
        return config_faults(place, adapter, config)
    faults = [*settings_faults(adapter, config), *single_file_faults(place, adapter, config)]
    if config.config is not None and (described := Path(config.config)).is_dir():
        faults += config_faults(described, adapter, config, weights=False)
    return faults


def config_faults(
    folder: Path, adapter: type[DiffusersBackbone], config: ImportTeacherConfig, weights: bool = True
) -> list[str]:
    """Why a diffusers folder cannot be imported; weights: whether it must contain weights."""
    configurations = Configurations(folder, config.without)
    try:
        adapter = adapter.of(configurations.index.get("_class_name"))
        faults = list(settings_faults(adapter, config, in_folder=weights))
        faults = faults or list(index_faults(configurations, adapter))
    except UserError as error:
        return [str(error)]
    if faults:
        return faults
    for further in (
        schedule_faults(configurations, adapter, config),
        part_faults(configurations, adapter),
        adapter.fit(configurations),
    ):
        try:
            faults += further
        except UserError as error:
            faults.append(str(error))
    if weights:
        present = [part for part in adapter.networks() if configurations.has(part)]
        faults += weight_faults(folder, present, config.variant)
    return list(dict.fromkeys(faults))


def settings_faults(
    adapter: type[DiffusersBackbone], config: ImportTeacherConfig, in_folder: bool = False
) -> Iterator[str]:
    """Faults of `import_teacher`: parameters that do not apply to this family, or to a folder."""
    can = ", ".join(adapter.optional_parts) or "nothing"
    for part in config.without:
        if part not in (*adapter.optional_parts, *LEFT_OUT):
            yield (
                f"params.yaml: import_teacher.without = [{part}]: a {adapter.pipeline_class} cannot do "
                f"without it; it can without: {can}"
            )
    if config.prediction and FLOW_MATCH in adapter.schedulers:
        yield (
            f"params.yaml: import_teacher.prediction = {config.prediction}: a {adapter.pipeline_class} is a "
            "rectified flow and predicts its velocity; set null"
        )
    if config.weights == "ema" and in_folder:
        yield (
            "params.yaml: import_teacher.weights = ema: for single files; for a folder, `variant` selects "
            "the weights (non_ema, fp16)"
        )


def index_faults(configurations: Configurations, adapter: type[DiffusersBackbone]) -> Iterator[str]:
    """Faults of the pipeline's index: its class, its parts, and the settings beside them."""
    import diffusers

    index, file = configurations.index, configurations.folder / INDEX
    kind = getattr(diffusers, adapter.pipeline_class)
    expected, _ = kind._get_signature_keys(kind)
    if (class_name := index.get("_class_name")) != adapter.pipeline_class:
        wanted = f"this teacher.backbone takes a {adapter.pipeline_class}; choose the other family"
        yield f"{file}: is a {class_name}, {wanted}"
        return
    for name, value in index.items():
        if name.startswith("_") or name in LEFT_OUT or name in configurations.without:
            continue
        if not isinstance(value, list) and name not in adapter.part_classes():
            if name not in HARMLESS and value not in (None, False):
                yield fault(file, name, value, "asks for an input that this family's adapter does not feed")
        elif not is_class(value):
            yield fault(file, name, value, "expected a library and a class")
        elif name not in expected and value[0] is not None:
            yield fault(file, name, value, f"no part of a {adapter.pipeline_class}")
    absent = [part for part in adapter.optional_parts if not configurations.has(part)]
    unused = {name for part in absent for name in (part, *adapter.optional_parts[part])}
    for name in adapter.part_classes():
        if configurations.has(name):
            yield from class_faults(name, index[name], adapter, file)
        elif name not in unused and is_class(index.get(name)):
            yield fault(file, name, index.get(name), "is missing; a teacher needs this part")


def is_class(entry: Any) -> bool:
    """Whether an entry of the index is absent, or a library and a class, each of which may be null."""
    if entry is None:
        return True
    return isinstance(entry, list) and len(entry) == 2 and all(e is None or isinstance(e, str) for e in entry)


def class_faults(name: str, entry: Any, adapter: type[DiffusersBackbone], file: Path) -> Iterator[str]:
    """Faults of a part's class: it must be a library's class, and one that the family supports."""
    library, kind = entry
    allowed = adapter.part_classes()[name]
    if library not in LIBRARIES:
        yield f"{file}: {name} is code of its own ({library}), which is not run"
    elif name != "scheduler" and OLD_NAMES.get(kind, kind).removesuffix("Fast") not in allowed:
        yield fault(file, name, entry, f"this family takes {' or '.join(allowed)}")


def schedule_faults(
    configurations: Configurations, adapter: type[DiffusersBackbone], config: ImportTeacherConfig
) -> Iterator[str]:
    """Faults of the scheduler; the user's prediction type, if set, replaces the file's."""
    scheduler, file = configurations.of("scheduler"), configurations.file("scheduler")
    if config.prediction:
        scheduler["prediction_type"] = config.prediction
    # The index decides which class is loaded. Another class may have written the file.
    for name in dict.fromkeys((scheduler.get("_class_name"), configurations.index["scheduler"][1])):
        if name is not None:
            described = {**scheduler, "_class_name": name}
            yield from scheduler_faults(described, adapter.schedulers, adapter.dynamic_shifting, file)


def part_faults(configurations: Configurations, adapter: type[DiffusersBackbone]) -> Iterator[str]:
    """Faults of the denoiser and of the autoencoder."""
    net = adapter.net_part
    file = configurations.file(net)
    yield from network_faults(configurations.of(net), adapter.net_class, adapter.net_values, file)
    if not adapter.vae_class:
        return
    vae, file = configurations.of("vae"), configurations.file("vae")
    yield from network_faults(vae, adapter.vae_class, adapter.vae_values, file)
    scale = vae.get("scaling_factor", 1.0)
    if not isinstance(scale, (int, float)) or not scale:
        yield fault(file, "scaling_factor", scale, "expected a number")
