"""A low-rank student's adapter in the formats that are loaded elsewhere."""

import json
import shutil
from pathlib import Path

import torch
from diffusers.utils import convert_state_dict_to_kohya
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from fewstep.artifacts.folder import read_json
from fewstep.artifacts.manifest import NAME

DIFFUSERS, KOHYA = "pytorch_lora_weights.safetensors", "kohya.safetensors"


def export_adapter(model: Path, out: Path) -> bool:
    """Copy the adapter of the artifact `model` into the new folder `out`, as it is and with kohya's names.

    ComfyUI and AUTOMATIC1111 read the latter. Returns False, and writes nothing, for a model without one.
    """
    source = model / "lora" / DIFFUSERS
    if not source.is_file():
        return False
    out.mkdir()
    shutil.copyfile(source, out / DIFFUSERS)
    with safe_open(source, "pt") as file:
        header = json.loads(file.metadata()["lora_adapter_metadata"])
    (alpha,) = {value for name, value in header.items() if name.endswith(".lora_alpha")}
    renamed = {
        # diffusers writes the rank for alpha; ours may be another.
        name: torch.tensor(float(alpha)) if name.endswith(".alpha") else weight.contiguous()
        for name, weight in convert_state_dict_to_kohya(load_file(source)).items()
    }
    made = read_json(model / NAME)["made_from"]
    save_file(renamed, out / KOHYA, metadata={"fewstep": json.dumps(made, sort_keys=True)})
    return True
