"""Settings of diffusers' networks that the adapters support; a setting that is not listed is refused.

A setting is free if the network implements any value of it by itself. It is fixed if another value makes the
network take an input that the adapter does not feed, or return an output that it does not read.
"""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from fewstep.backbones.configurations import fault


class Settings(NamedTuple):
    """Supported settings of a network class. free: settings with any value. fixed: setting -> allowed values.

    A fixed setting may be missing: the first value is the class's default. why: setting -> what another value
    would mean.
    """

    free: frozenset[str]
    fixed: Mapping[str, tuple[Any, ...]]
    why: Mapping[str, str] = {}


def words(text: str) -> frozenset[str]:
    """The words of a text."""
    return frozenset(text.split())


BLOCKS = words(
    "down_block_types mid_block_type up_block_types block_out_channels "
    "layers_per_block downsample_padding mid_block_scale_factor dropout act_fn "
    "norm_num_groups norm_eps attention_head_dim center_input_sample flip_sin_to_cos "
    "freq_shift resnet_time_scale_shift time_embedding_dim in_channels out_channels "
    "sample_size"
)
TRANSFORMER = words(
    "num_attention_heads attention_head_dim in_channels out_channels num_layers "
    "dropout norm_num_groups cross_attention_dim attention_bias sample_size "
    "patch_size activation_fn upcast_attention norm_type norm_elementwise_affine "
    "norm_eps interpolation_scale caption_channels qk_norm"
)
EXTRA_INPUT = "the network takes a further input, which this family's adapter does not feed"
INSTRUCTED = {
    "class_embed_type": f"{EXTRA_INPUT} (unCLIP, upscalers)",
    "num_class_embeds": f"{EXTRA_INPUT}, a class (upscalers)",
    "encoder_hid_dim_type": f"{EXTRA_INPUT}, or text of another kind (Kandinsky, Kolors, IP-Adapter)",
    "encoder_hid_dim": "text of another width is projected (Kolors, DeepFloyd)",
    "addition_embed_type": f"{EXTRA_INPUT}, or lacks one of this family's",
    "time_embedding_type": "the network takes time in other units",
    "time_cond_proj_dim": (
        "the network takes guidance as an input, as a latent consistency model's does; take the model that "
        "it was distilled from"
    ),
    "attention_type": f"{EXTRA_INPUT}, boxes (GLIGEN)",
}
NETWORKS: Mapping[str, Settings] = {
    "UNet2DConditionModel": Settings(
        BLOCKS
        | words(
            "only_cross_attention cross_attention_dim transformer_layers_per_block "
            "reverse_transformer_layers_per_block num_attention_heads dual_cross_attention "
            "use_linear_projection upcast_attention resnet_skip_time_act "
            "resnet_out_scale_factor time_embedding_act_fn timestep_post_act conv_in_kernel "
            "conv_out_kernel mid_block_only_cross_attention cross_attention_norm "
            "addition_embed_type_num_heads addition_time_embed_dim "
            "projection_class_embeddings_input_dim class_embeddings_concat"
        ),
        {
            "time_embedding_type": ("positional",),
            "attention_type": ("default",),
            "class_embed_type": (None,),
            "num_class_embeds": (None,),
            "encoder_hid_dim": (None,),
            "encoder_hid_dim_type": (None,),
            "addition_embed_type": (None,),
            "time_cond_proj_dim": (None,),
        },
        INSTRUCTED,
    ),
    "UNet2DModel": Settings(
        BLOCKS
        | words(
            "downsample_type upsample_type attn_norm_num_groups add_attention "
            "num_class_embeds num_train_timesteps"
        ),
        {"time_embedding_type": ("positional",), "class_embed_type": (None,)},
        INSTRUCTED,
    ),
    "SD3Transformer2DModel": Settings(
        TRANSFORMER
        | words(
            "joint_attention_dim caption_projection_dim pooled_projection_dim "
            "pos_embed_max_size dual_attention_layers"
        ),
        {},
    ),
    "FluxTransformer2DModel": Settings(
        TRANSFORMER
        | words("num_single_layers joint_attention_dim pooled_projection_dim guidance_embeds axes_dims_rope"),
        {"patch_size": (1,)},
    ),
    "PixArtTransformer2DModel": Settings(
        TRANSFORMER | frozenset(["num_embeds_ada_norm", "use_additional_conditions"]),
        {"norm_type": ("ada_norm_single",), "attention_type": ("default",)},
        INSTRUCTED,
    ),
    "SanaTransformer2DModel": Settings(
        TRANSFORMER
        | words(
            "num_cross_attention_heads cross_attention_head_dim mlp_ratio timestep_scale "
            "guidance_embeds_scale"
        ),
        {"guidance_embeds": (False,)},
        {"guidance_embeds": f"{EXTRA_INPUT}, guidance (Sana-Sprint)"},
    ),
    "AutoencoderKL": Settings(
        words(
            "down_block_types up_block_types block_out_channels layers_per_block act_fn "
            "latent_channels norm_num_groups sample_size scaling_factor shift_factor "
            "force_upcast use_quant_conv use_post_quant_conv mid_block_add_attention"
        ),
        {
            "in_channels": (3,),
            "out_channels": (3,),
            "latents_mean": (None,),
            "latents_std": (None,),
        },
        {
            "latents_mean": "latents with a mean per channel (Playground 2.5) are not supported",
            "latents_std": "latents with a scale per channel (Playground 2.5) are not supported",
            "shift_factor": "this family's stock pipeline does not shift latents",
        },
    ),
    "AutoencoderDC": Settings(
        words(
            "latent_channels attention_head_dim encoder_block_types decoder_block_types "
            "encoder_block_out_channels decoder_block_out_channels encoder_layers_per_block "
            "decoder_layers_per_block encoder_qkv_multiscales decoder_qkv_multiscales "
            "upsample_block_type downsample_block_type decoder_norm_types decoder_act_fns "
            "encoder_out_shortcut decoder_in_shortcut decoder_conv_act_fn scaling_factor"
        ),
        {"in_channels": (3,)},
    ),
}
"""Class in diffusers -> its settings."""
OLD_NAMES = {"Transformer2DModel": "PixArtTransformer2DModel"}
"""Class names in published folders -> the class that diffusers loads instead."""


def network_faults(
    config: Mapping[str, Any], wanted: str, fixed: Mapping[str, tuple[Any, ...]], file: Path
) -> Iterator[str]:
    """Faults of a network's configuration: its class, and settings that its adapter does not support.

    wanted: class that the family takes. fixed: the family's own settings, in addition to those of the class.
    A missing one is a fault unless None is allowed.
    """
    name = config.get("_class_name")
    if OLD_NAMES.get(str(name), name) != wanted:
        yield fault(file, "_class_name", name, f"this family takes {wanted}")
        return
    settings = NETWORKS[wanted]
    allowed = {**settings.fixed, **fixed}
    for key, value in config.items():
        if key in allowed:
            values = allowed[key]
            if value not in values and not (value is None and None in values):
                known = " or ".join(map(json.dumps, values))
                why = settings.why.get(key, "another kind of model")
                yield fault(file, key, value, f"{why}; this family takes {known}")
        elif key not in settings.free and not key.startswith("_") and value not in (None, False, [], "", {}):
            yield fault(
                file,
                key,
                value,
                f"not a supported setting of {wanted}; remove it if it changes nothing",
            )
    for key, values in fixed.items():
        if key not in config and None not in values:
            yield fault(
                file, key, None, f"is missing; this family takes {' or '.join(map(json.dumps, values))}"
            )
