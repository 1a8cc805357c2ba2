"""Checks weight files by their names and headers; no tensor is read."""

import re
from collections import defaultdict
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

from safetensors import SafetensorError, safe_open

from fewstep.backbones.configurations import read_object
from fewstep.core.errors import UserError

SAFE = ".safetensors"
STEMS = ("diffusion_pytorch_model", "model")
"""Beginnings of the names of weight files that diffusers and transformers write."""
PICKLES = (".bin", ".ckpt", ".pt", ".pth", ".pkl", ".msgpack")
OTHERS = {
    **dict.fromkeys(PICKLES, "a pickle, which may run code when it is opened and is not opened here"),
    ".gguf": "weights quantized for inference, which cannot be trained",
    ".onnx": "a compiled graph, which cannot be trained",
}
CONVERT = (
    "where you trust it: `DiffusionPipeline.from_pretrained(FOLDER, use_safetensors=False)"
    ".save_pretrained(NEW_FOLDER)`, or `from_single_file(FILE)` for a single file"
)
PLAIN = ""
"""Stands for weights without a variant."""
POINTER, PAGE = b"version https://git-lfs", (b"<", b"{\n", b'{"error')


class Header(NamedTuple):
    """Header of a safetensors file. shapes: tensor name -> shape. metadata: the file's own metadata."""

    shapes: Mapping[str, tuple[int, ...]]
    metadata: Mapping[str, str]


def read_header(file: Path) -> Header:
    """Names, shapes and metadata. Raises UserError with a remedy if it is not a complete safetensors file."""
    if reason := not_weights(file):
        raise UserError(f"{file}: {reason}")
    try:
        with safe_open(file, "pt") as opened:
            shapes = {name: tuple(opened.get_slice(name).get_shape()) for name in opened.keys()}  # noqa: SIM118
            return Header(shapes, opened.metadata() or {})
    except (SafetensorError, OSError, ValueError) as error:
        raise UserError(
            f"{file}: damaged or cut short, download it again ({str(error).splitlines()[0]})"
        ) from None


def not_weights(file: Path) -> str | None:
    """Why the file cannot hold weights, from its name and first bytes; None if it may hold some."""
    if file.is_dir():
        return "is a folder, not a file of weights"
    if why := OTHERS.get(file.suffix):
        return f"{why}; convert it to {SAFE} {CONVERT if file.suffix in PICKLES else 'from its original'}"
    if file.suffix != SAFE:
        return f"a single file must be {SAFE}"
    try:
        with file.open("rb") as stream:
            start = stream.read(64)
    except OSError as error:
        return f"cannot be read: {error.strerror}"
    if not start:
        return "is empty, download it again"
    if start.startswith(POINTER):
        return "is a Git LFS pointer, not the weights; run `git lfs pull` in its repository"
    if start.lstrip().startswith(PAGE):
        return (
            "is a web page or a message, not the weights; download it again, logged in where that is needed"
        )
    return None


def variants(folder: Path) -> dict[str, list[Path]]:
    """Variants of a part's weights -> their files; the variant without a name is `PLAIN`.

    Raises UserError for an index that is broken.
    """
    files: dict[str, list[Path]] = {}
    for stem in STEMS:
        for file in sorted(folder.glob(f"{stem}{SAFE}.index*.json")):
            middle = file.name.removeprefix(f"{stem}{SAFE}.index").removesuffix(".json")
            shards = read_object(file).get("weight_map")
            if not isinstance(shards, dict) or not all(isinstance(name, str) for name in shards.values()):
                raise UserError(f"{file}: weight_map: expected the name of a file for each tensor")
            files[middle.removeprefix(".")] = [folder / name for name in sorted(set(shards.values()))]
        for file in sorted(folder.glob(f"{stem}*{SAFE}")):
            middle = file.name.removeprefix(stem).removesuffix(SAFE)
            if re.fullmatch(r"(\.[\w-]+?)?", middle) and not re.search(r"-\d+-of-\d+$", middle):
                files.setdefault(middle.removeprefix("."), [file])
    return files


def variant_of(folder: Path, wanted: str | None) -> str | None:
    """The variant of a part to load: the wanted one if it exists, else None, the one without a name."""
    return wanted if wanted and wanted in variants(folder) else None


def weight_faults(folder: Path, parts: list[str], wanted: str | None) -> Iterator[str]:
    """What is wrong with the weights of a folder's parts; one line for all parts with the same fault."""
    lacking: dict[str, list[str]] = defaultdict(list)
    used = False
    for part in parts:
        try:
            by_variant = variants(folder / part)
        except UserError as error:
            yield str(error)
            continue
        used |= wanted in by_variant
        chosen = wanted if wanted in by_variant else PLAIN
        if chosen not in by_variant:
            lacking[way_out(folder / part, sorted(by_variant), wanted)].append(part)
            continue
        for file in by_variant[chosen]:
            if not file.exists():
                yield f"{file}: is missing, though the index beside it names it; fetch the folder again"
                continue
            try:
                read_header(file)
            except UserError as error:
                yield str(error)
    for why, names in lacking.items():
        yield f"{folder}: {', '.join(names)}: {why}"
    if wanted and not used and not lacking:
        yield f"{folder}: import_teacher.variant = {wanted!r}: no part has such weights; set it to null"


def way_out(folder: Path, existing: list[str], wanted: str | None) -> str:
    """Why a part's weights cannot be loaded, and what to set or do."""
    if existing:
        names = " or ".join(f"`import_teacher.variant: {name}`" for name in existing)
        return (
            f"no weights {f'of the variant {wanted} ' if wanted else 'without a variant '}there; set {names}"
        )
    if not folder.is_dir():
        return "no such folder; fetch the teacher again"
    files = sorted(file for file in folder.iterdir() if file.suffix in OTHERS)
    if files:
        kind = files[0].suffix
        return f"has {kind} files only: {OTHERS[kind]}; convert them to {SAFE} {CONVERT}"
    return f"has no {SAFE} file of weights named {' or '.join(STEMS)}; fetch the folder again"
