"""A miniature Stable Diffusion as one file with the original names."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}
State = dict[str, Tensor]
Rules = tuple[tuple[str, Callable[[re.Match[str]], str]], ...]


def resnet(name: str) -> str:
    layer, _, rest = name.partition(".")
    return f"{RESNET[layer]}.{rest}"


UNET: Rules = (
    (r"conv_in\.(.*)", lambda m: f"input_blocks.0.0.{m[1]}"),
    (r"time_embedding\.linear_(\d)\.(.*)", lambda m: f"time_embed.{2 * int(m[1]) - 2}.{m[2]}"),
    (
        r"down_blocks\.(\d)\.resnets\.0\.(.*)",
        lambda m: f"input_blocks.{1 + 2 * int(m[1])}.0.{resnet(m[2])}",
    ),
    (r"down_blocks\.(\d)\.attentions\.0\.(.*)", lambda m: f"input_blocks.{1 + 2 * int(m[1])}.1.{m[2]}"),
    (
        r"down_blocks\.(\d)\.downsamplers\.0\.conv\.(.*)",
        lambda m: f"input_blocks.{2 + 2 * int(m[1])}.0.op.{m[2]}",
    ),
    (r"mid_block\.resnets\.(\d)\.(.*)", lambda m: f"middle_block.{2 * int(m[1])}.{resnet(m[2])}"),
    (r"mid_block\.attentions\.0\.(.*)", lambda m: f"middle_block.1.{m[1]}"),
    (
        r"up_blocks\.(\d)\.resnets\.(\d)\.(.*)",
        lambda m: f"output_blocks.{2 * int(m[1]) + int(m[2])}.0.{resnet(m[3])}",
    ),
    (
        r"up_blocks\.(\d)\.attentions\.(\d)\.(.*)",
        lambda m: f"output_blocks.{2 * int(m[1]) + int(m[2])}.1.{m[3]}",
    ),
    (
        r"up_blocks\.(\d)\.upsamplers\.0\.conv\.(.*)",
        lambda m: f"output_blocks.{2 * int(m[1]) + 1}.2.conv.{m[2]}",
    ),
    (r"conv_norm_out\.(.*)", lambda m: f"out.0.{m[1]}"),
    (r"conv_out\.(.*)", lambda m: f"out.2.{m[1]}"),
)
"""Of `tests.pipelines.unet`, one residual block per level."""
VAE: Rules = (
    (r"down_blocks\.(\d)\.resnets\.(\d)", lambda m: f"down.{m[1]}.block.{m[2]}"),
    (r"down_blocks\.(\d)\.downsamplers\.0", lambda m: f"down.{m[1]}.downsample"),
    (r"up_blocks\.(\d)\.resnets\.(\d)", lambda m: f"up.{3 - int(m[1])}.block.{m[2]}"),
    (r"up_blocks\.(\d)\.upsamplers\.0", lambda m: f"up.{3 - int(m[1])}.upsample"),
    (r"mid_block\.resnets\.(\d)", lambda m: f"mid.block_{int(m[1]) + 1}"),
    (r"mid_block\.attentions\.0\.group_norm", lambda m: "mid.attn_1.norm"),
    (r"mid_block\.attentions\.0\.to_(q|k|v)\b", lambda m: f"mid.attn_1.{m[1]}"),
    (r"mid_block\.attentions\.0\.to_out\.0", lambda m: "mid.attn_1.proj_out"),
    (r"conv_shortcut", lambda m: "nin_shortcut"),
    (r"conv_norm_out", lambda m: "norm_out"),
)
"""Of `tests.pipelines.vae`, four levels."""


def original_unet(state: State) -> State:
    renamed_state = {}
    for name, value in state.items():
        match, rename = next((m, rename) for rule, rename in UNET if (m := re.fullmatch(rule, name)))
        renamed_state[f"model.diffusion_model.{rename(match)}"] = value
    return renamed_state


def original_vae(state: State) -> State:
    renamed_state = {}
    for name, value in state.items():
        renamed = name
        for rule, rename in VAE:
            renamed = re.sub(rule, rename, renamed)
        as_convolution = "mid.attn_1" in renamed and value.ndim == 2
        renamed_state[f"first_stage_model.{renamed}"] = value[:, :, None, None] if as_convolution else value
    return renamed_state


def original_text(state: State) -> State:
    names = {name: name if name.startswith("text_model.") else f"text_model.{name}" for name in state}
    return {
        f"cond_stage_model.transformer.{names[name]}": value
        for name, value in state.items()
        if "position_ids" not in name
    }


def parts_of(pipeline: Any) -> tuple[State, State, State]:
    """The denoiser's, the autoencoder's and the text encoder's weights by their original names."""
    return (
        original_unet(pipeline.unet.state_dict()),
        original_vae(pipeline.vae.state_dict()),
        original_text(pipeline.text_encoder.state_dict()),
    )


def averages(unet: State, factor: float) -> State:
    """The denoiser's weights times a factor, by the names of their averages."""
    return {
        "model_ema." + name.removeprefix("model.").replace(".", ""): value * factor
        for name, value in unet.items()
    }


def write(file: Path, *states: State, metadata: dict[str, str] | None = None) -> Path:
    """One file of all these weights."""
    whole = {name: value.contiguous().clone() for state in states for name, value in state.items()}
    save_file(whole, file, metadata=metadata)
    return file


def mark(*names: str) -> State:
    """Empty tensors, whose names record how the file was trained."""
    return {name: torch.tensor([]) for name in names}
