"""Exports a low-rank student's adapter in the formats that other software loads."""

import json
import shutil
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from fewstep.artifacts.manifest import NAME
from fewstep.backbones.low_rank import FILE, METADATA
from fewstep.backbones.stored import LORA
from fewstep.core.files import read_json

KOHYA = "kohya.safetensors"
HALVES = {"lora_A": "lora_down", "lora_B": "lora_up"}
"""The two factors of a low-rank update: name in PEFT -> name in kohya's format."""


def export_adapter(model: Path, out: Path) -> bool:
    """Copy the adapter of the artifact `model` into the new folder `out`, as it is and with kohya's names.

    Kohya's names have the prefix `lora_unet_` or `lora_transformer_` before the layer's name in diffusers.
    ComfyUI reads both (the first for SD and SDXL, the second for SD3 and Flux), AUTOMATIC1111 only the first.
    Returns False, and writes nothing, for a model without an adapter, and for one with inputs that the stock
    network does not take: its adapter has their weights, too.
    """
    source, manifest = model / LORA / FILE, read_json(model / NAME)
    if not source.is_file() or manifest["facts"]["inputs"]:
        return False
    out.mkdir()
    shutil.copyfile(source, out / FILE)
    with safe_open(source, "pt") as file:
        header = json.loads(file.metadata()[METADATA])
    (alpha,) = {value for name, value in header.items() if name.endswith(".lora_alpha")}
    renamed: dict[str, torch.Tensor] = {}
    for name, weight in load_file(source).items():
        layer, half, _ = name.rsplit(".", 2)
        stem = f"lora_{layer.replace('.', '_')}"
        renamed |= {f"{stem}.{HALVES[half]}.weight": weight, f"{stem}.alpha": torch.tensor(float(alpha))}
    made = json.dumps(manifest["made_from"], sort_keys=True)
    save_file(renamed, out / KOHYA, metadata={"fewstep": made})
    return True
