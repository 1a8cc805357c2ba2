"""Miniature pipelines of diffusers' real classes, random weights, one per family."""

from pathlib import Path
from typing import Any

import diffusers as d
import torch
import transformers as t

from fewstep.backbones.bpe import new_tokenizer

CAPTIONS = ["a small red star on a blue background", "a large green circle on a white background"]
SIDE = 8
"""Of a latent."""


def backbone_of(family: str) -> str:
    """The value of `teacher.backbone` for a maker's pipelines."""
    return family.removesuffix("_sigma")


def make(family: str, folder: Path, **options: Any) -> Any:
    """Save a pipeline of this family; options go to its maker."""
    torch.manual_seed(0)
    pipeline = MAKERS[family](**options)
    pipeline.save_pretrained(folder)
    return type(pipeline).from_pretrained(folder)


def clip_tokenizer() -> t.CLIPTokenizer:
    return new_tokenizer(CAPTIONS, 560, 12)


def clip(width: int, projected: bool = False) -> Any:
    tokenizer = clip_tokenizer()
    config = t.CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=width,
        intermediate_size=2 * width,
        num_hidden_layers=3,
        num_attention_heads=2,
        max_position_embeddings=12,
        projection_dim=width,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return (t.CLIPTextModelWithProjection if projected else t.CLIPTextModel)(config)


def t5(width: int) -> Any:
    return t.T5EncoderModel(
        t.T5Config(vocab_size=64, d_model=width, d_kv=8, d_ff=32, num_layers=2, num_heads=2)
    )


def t5_tokenizer() -> t.T5Tokenizer:
    letters = [(letter, -3.0) for letter in "▁abcdefghijklmnopqrstuvwxyz"]
    words = [("▁red", -1.0), ("▁star", -1.0), ("▁background", -1.0)]
    special = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", -9.0)]
    return t.T5Tokenizer(vocab=[*special, *letters, *words], extra_ids=0)


def vae(channels: int = 4, **options: Any) -> d.AutoencoderKL:
    return d.AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(8, 8, 8, 8),
        layers_per_block=1,
        latent_channels=channels,
        norm_num_groups=4,
        sample_size=64,
        **options,
    )


def unet(cross: int, **options: Any) -> d.UNet2DConditionModel:
    return d.UNet2DConditionModel(
        sample_size=SIDE,
        block_out_channels=(8, 16),
        layers_per_block=1,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=cross,
        attention_head_dim=2,
        norm_num_groups=4,
        **options,
    )


def betas(**options: Any) -> dict[str, Any]:
    return {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", **options}


def sd(**scheduler: Any) -> d.StableDiffusionPipeline:
    return d.StableDiffusionPipeline(
        vae=vae(),
        text_encoder=clip(16),
        tokenizer=clip_tokenizer(),
        unet=unet(16),
        scheduler=d.DDIMScheduler(**betas(steps_offset=1, clip_sample=False, **scheduler)),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def sdxl(**scheduler: Any) -> d.StableDiffusionXLPipeline:
    return d.StableDiffusionXLPipeline(
        vae=vae(force_upcast=True, scaling_factor=0.13025),
        text_encoder=clip(16),
        text_encoder_2=clip(24, projected=True),
        tokenizer=clip_tokenizer(),
        tokenizer_2=clip_tokenizer(),
        unet=unet(
            40,
            addition_embed_type="text_time",
            addition_time_embed_dim=4,
            projection_class_embeddings_input_dim=24 + 6 * 4,
        ),
        scheduler=d.EulerDiscreteScheduler(**betas(**scheduler)),
        add_watermarker=False,
    )


def pixart_transformer(side: int = SIDE, **options: Any) -> d.PixArtTransformer2DModel:
    return d.PixArtTransformer2DModel(
        sample_size=side,
        num_layers=2,
        patch_size=2,
        attention_head_dim=8,
        num_attention_heads=3,
        in_channels=4,
        out_channels=8,
        cross_attention_dim=24,
        caption_channels=16,
        **options,
    )


def pixart(side: int = SIDE) -> d.PixArtAlphaPipeline:
    return d.PixArtAlphaPipeline(
        vae=vae(),
        text_encoder=t5(16),
        tokenizer=t5_tokenizer(),
        transformer=pixart_transformer(side),
        scheduler=d.DPMSolverMultistepScheduler(beta_start=0.0001, beta_end=0.02),
    )


def pixart_sigma() -> d.PixArtSigmaPipeline:
    return d.PixArtSigmaPipeline(
        vae=vae(),
        text_encoder=t5(16),
        tokenizer=t5_tokenizer(),
        transformer=pixart_transformer(use_additional_conditions=False),
        scheduler=d.DPMSolverMultistepScheduler(beta_start=0.0001, beta_end=0.02),
    )


def sd3() -> d.StableDiffusion3Pipeline:
    return d.StableDiffusion3Pipeline(
        vae=vae(
            16, shift_factor=0.0609, scaling_factor=1.5305, use_quant_conv=False, use_post_quant_conv=False
        ),
        text_encoder=clip(16, projected=True),
        text_encoder_2=clip(16, projected=True),
        text_encoder_3=t5(32),
        tokenizer=clip_tokenizer(),
        tokenizer_2=clip_tokenizer(),
        tokenizer_3=t5_tokenizer(),
        transformer=d.SD3Transformer2DModel(
            sample_size=SIDE,
            patch_size=2,
            in_channels=16,
            num_layers=2,
            attention_head_dim=8,
            num_attention_heads=2,
            joint_attention_dim=32,
            caption_projection_dim=16,
            pooled_projection_dim=32,
            out_channels=16,
        ),
        scheduler=d.FlowMatchEulerDiscreteScheduler(shift=3.0),
    )


def flux(guided: bool = True) -> d.FluxPipeline:
    """Dev; schnell, which has neither guidance nor a shift, where it is not guided."""
    return d.FluxPipeline(
        vae=vae(
            4, shift_factor=0.1159, scaling_factor=0.3611, use_quant_conv=False, use_post_quant_conv=False
        ),
        text_encoder=clip(16),
        text_encoder_2=t5(32),
        tokenizer=clip_tokenizer(),
        tokenizer_2=t5_tokenizer(),
        transformer=d.FluxTransformer2DModel(
            patch_size=1,
            in_channels=16,
            num_layers=1,
            num_single_layers=1,
            attention_head_dim=16,
            num_attention_heads=2,
            joint_attention_dim=32,
            pooled_projection_dim=16,
            axes_dims_rope=(4, 4, 8),
            guidance_embeds=guided,
        ),
        scheduler=d.FlowMatchEulerDiscreteScheduler(
            shift=3.0 if guided else 1.0,
            use_dynamic_shifting=guided,
            base_image_seq_len=4,
            max_image_seq_len=64,
        ),
    )


def gemma_tokenizer() -> t.GemmaTokenizer:
    words = ["<pad>", "<eos>", "<bos>", "<unk>", "▁", *"abcdefghijklmnopqrstuvwxyz"]
    return t.GemmaTokenizer(vocab={word: i for i, word in enumerate(words)}, merges=[])


def sana(euler: bool = False) -> d.SanaPipeline:
    tokenizer = gemma_tokenizer()
    published = {"use_flow_sigmas": True, "flow_shift": 3.0, "prediction_type": "flow_prediction"}
    return d.SanaPipeline(
        vae=d.AutoencoderDC(
            latent_channels=4,
            attention_head_dim=2,
            encoder_block_types=("ResBlock",) * 6,
            decoder_block_types=("ResBlock",) * 6,
            encoder_block_out_channels=(8,) * 6,
            decoder_block_out_channels=(8,) * 6,
            encoder_layers_per_block=(1,) * 6,
            decoder_layers_per_block=(1,) * 6,
            encoder_qkv_multiscales=((),) * 6,
            decoder_qkv_multiscales=((),) * 6,
            downsample_block_type="conv",
            upsample_block_type="interpolate",
            decoder_norm_types="rms_norm",
            decoder_act_fns="silu",
            scaling_factor=0.41407,
        ),
        text_encoder=t.Gemma2Model(
            t.Gemma2Config(
                vocab_size=len(tokenizer),
                hidden_size=16,
                intermediate_size=32,
                num_hidden_layers=2,
                num_attention_heads=2,
                num_key_value_heads=1,
                head_dim=8,
            )
        ),
        tokenizer=tokenizer,
        transformer=d.SanaTransformer2DModel(
            sample_size=2,
            patch_size=1,
            in_channels=4,
            out_channels=4,
            num_layers=2,
            num_attention_heads=2,
            attention_head_dim=8,
            num_cross_attention_heads=2,
            cross_attention_head_dim=8,
            cross_attention_dim=16,
            caption_channels=16,
        ),
        scheduler=d.FlowMatchEulerDiscreteScheduler(shift=3.0)
        if euler
        else d.DPMSolverMultistepScheduler(**published),
    )


def pack(latents: torch.Tensor) -> torch.Tensor:
    """As stock Flux takes them."""
    packed: torch.Tensor = d.FluxPipeline._pack_latents(latents, *latents.shape)
    return packed


def pixel(classes: int | None = None) -> d.DDPMPipeline:
    return d.DDPMPipeline(
        unet=d.UNet2DModel(
            sample_size=16,
            block_out_channels=(8, 16),
            layers_per_block=1,
            down_block_types=("DownBlock2D", "AttnDownBlock2D"),
            up_block_types=("AttnUpBlock2D", "UpBlock2D"),
            attention_head_dim=4,
            norm_num_groups=4,
            num_class_embeds=classes,
        ),
        scheduler=d.DDPMScheduler(beta_schedule="squaredcos_cap_v2", prediction_type="v_prediction"),
    )


MAKERS = {
    "sd": sd,
    "sdxl": sdxl,
    "pixart": pixart,
    "pixart_sigma": pixart_sigma,
    "sd3": sd3,
    "flux": flux,
    "sana": sana,
    "pixel": pixel,
}
