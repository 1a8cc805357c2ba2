"""Smaller networks have exactly the published sizes, or those that their layers add up to."""

from functools import cache
from typing import Any

import pytest
import torch
from diffusers import (
    FluxTransformer2DModel,
    PixArtTransformer2DModel,
    SanaTransformer2DModel,
    SD3Transformer2DModel,
    UNet2DConditionModel,
)
from torch import nn

from tests.compression import cut

SD1: dict[str, Any] = {"cross_attention_dim": 768, "sample_size": 64}
SD2: dict[str, Any] = {
    "cross_attention_dim": 1024,
    "attention_head_dim": (5, 10, 20, 20),
    "use_linear_projection": True,
    "sample_size": 64,
}
SDXL: dict[str, Any] = {
    "block_out_channels": (320, 640, 1280),
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    "transformer_layers_per_block": (1, 2, 10),
    "attention_head_dim": (5, 10, 20),
    "use_linear_projection": True,
    "cross_attention_dim": 2048,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 256,
    "projection_class_embeddings_input_dim": 2816,
    "sample_size": 128,
}
UNETS = {"SD 1": SD1, "SD 2": SD2, "SDXL": SDXL}


@cache
def on_meta(name: str) -> Any:
    """A published U-Net without values."""
    with torch.device("meta"):
        return UNet2DConditionModel(**UNETS[name])


def weights(net: nn.Module) -> int:
    return sum(weight.numel() for weight in net.parameters())


# BK-SDM (Kim et al. 2023), its version 2 on SD 2.1, and SDXS-512 as published.
@pytest.mark.parametrize(
    ("name", "size", "expected"),
    [
        ("SD 1", "full", 859_520_964),
        ("SD 1", "base", 579_384_964),
        ("SD 1", "small", 482_346_884),
        ("SD 1", "tiny", 323_384_964),
        ("SD 1", "sd_small", 579_384_964),
        ("SD 1", "sd_tiny", 323_384_964),
        ("SD 2", "base", 583_480_964),
        ("SD 2", "small", 485_787_524),
        ("SD 2", "tiny", 326_825_604),
        ("SD 2", "sdxs", 318_695_364),
    ],
)
def test_sizes_are_the_published_ones(name: str, size: str, expected: int) -> None:
    assert weights(cut(on_meta(name), size)) == expected


# SSD-1B's and Segmind-Vega's cards have 1.3 and 0.74 billion; KOALA's table 2 has 1,161 and 782 million.
@pytest.mark.parametrize(
    ("size", "least", "most"),
    [
        ("ssd_1b", 1_300_000_000, 1_350_000_000),
        ("vega", 740_000_000, 750_000_000),
        ("koala_1b", 1_161_000_000, 1_162_000_000),
        ("koala_700m", 782_000_000, 783_000_000),
    ],
)
def test_sizes_of_sdxl_are_the_published_ones(size: str, least: int, most: int) -> None:
    assert least <= weights(cut(on_meta("SDXL"), size)) < most


def linear(a: int, b: int, bias: bool = True) -> int:
    return a * b + bias * b


def resnet(a: int, b: int, time: int = 1280) -> int:
    """Two normalised 3 x 3 convolutions, the time's projection, and the shortcut where widths differ."""
    shortcut = linear(a, b) if a != b else 0
    return 2 * a + 9 * a * b + b + linear(time, b) + 2 * b + 9 * b * b + b + shortcut


def attention(width: int, layers: int, text: int = 2048) -> int:
    """Normalisation, projections in and out, and `layers` transformer layers with a gated feed-forward."""
    own = 3 * linear(width, width, False) + linear(width, width)
    cross = linear(width, width, False) + 2 * linear(text, width, False) + linear(width, width)
    feed_forward = linear(width, 8 * width) + linear(4 * width, width)
    return 2 * width + 2 * linear(width, width) + layers * (own + cross + feed_forward + 6 * width)


def sdxl(layers: int, middle: bool, levels: int = 3) -> int:
    """Parameters of SDXL's U-Net by its architecture (Podell et al. 2023, table 1)."""
    widths, depth = (320, 640, 1280)[:levels], (0, 2, 10)[:levels]
    total = linear(320, 1280) + linear(1280, 1280)  # time
    total += linear(2816, 1280) + linear(1280, 1280)  # text and sizes
    total += 9 * 4 * 320 + 320 + 2 * 320 + 9 * 320 * 4 + 4  # in and out
    skips, before = [320], 320
    for level, width in enumerate(widths):
        for _ in range(layers):
            total += resnet(before, width) + (attention(width, depth[level]) if depth[level] else 0)
            before = width
            skips.append(width)
        if level < levels - 1:
            total += 9 * width * width + width
            skips.append(width)
    if middle:
        total += 2 * resnet(1280, 1280) + attention(1280, 10)
    for level in reversed(range(levels)):
        width = widths[level]
        for _ in range(layers + 1):
            total += resnet(before + skips.pop(), width)
            total += attention(width, depth[level]) if depth[level] else 0
            before = width
        if level > 0:
            total += 9 * width * width + width
    return total


def test_sizes_of_sdxl_are_those_of_its_layers() -> None:
    assert sdxl(2, True) == weights(on_meta("SDXL")) == 2_567_463_684
    counts = {size: weights(cut(on_meta("SDXL"), size)) for size in ("base", "small", "tiny")}
    assert counts == {"base": sdxl(1, True), "small": sdxl(1, False), "tiny": sdxl(1, False, levels=2)}


def wide(width: int, times: int) -> int:
    """`times` layers from `width` to `width`, with bias."""
    return times * linear(width, width)


def feed_forward(width: int) -> int:
    return linear(width, 4 * width) + linear(4 * width, width)


# Class, its published settings, the blocks that stay, the number of weights of those removed.
PIXART, SD3, FLUX, SANA = 1152, 1536, 3072, 2240
PRUNED: dict[str, tuple[Any, dict[str, Any], dict[str, Any], int]] = {
    # Two attentions, a feed-forward, and the table of six modulations (Chen et al. 2023).
    "PixArt": (
        PixArtTransformer2DModel,
        {"sample_size": 64, "use_additional_conditions": False},
        {"transformer_blocks": 14},
        14 * (wide(PIXART, 8) + feed_forward(PIXART) + 6 * PIXART),
    ),
    # Per stream: six modulations, attention and feed-forward (Esser et al. 2024, figure 2).
    "SD3": (
        SD3Transformer2DModel,
        {
            "num_layers": 24,
            "num_attention_heads": 24,
            "caption_projection_dim": SD3,
            "pos_embed_max_size": 192,
        },
        {"transformer_blocks": [0, 5, 10, 23]},
        20 * 2 * (6 * wide(SD3, 1) + wide(SD3, 4) + feed_forward(SD3)),
    ),
    # Of two streams, with four normalisations of queries and keys; of one stream: three modulations, queries,
    # keys, values, a feed-forward of which the output layer takes the attention too, two normalisations.
    "Flux": (
        FluxTransformer2DModel,
        {},
        {"transformer_blocks": 10, "single_transformer_blocks": 20},
        9 * (2 * (6 * wide(FLUX, 1) + wide(FLUX, 4) + feed_forward(FLUX)) + 4 * 128)
        + 18 * (wide(FLUX, 6) + linear(FLUX, 4 * FLUX) + linear(5 * FLUX, FLUX) + 2 * 128),
    ),
    # Linear attention whose queries, keys and values have no bias, cross-attention, a gated feed-forward of
    # 2.5 times the width with a 3 x 3 convolution per channel, and the table (Xie et al. 2024).
    "Sana": (
        SanaTransformer2DModel,
        {},
        {"transformer_blocks": 12},
        8
        * (
            3 * linear(SANA, SANA, False)
            + wide(SANA, 5)
            + (linear(SANA, 5 * SANA) + 10 * 5 * SANA + linear(5 * SANA // 2, SANA, False))
            + 6 * SANA
        ),
    ),
}


@pytest.mark.parametrize("name", PRUNED)
def test_a_pruned_transformer_lacks_the_blocks_that_were_removed(name: str) -> None:
    kind, settings, blocks, removed = PRUNED[name]
    with torch.device("meta"):
        net = kind(**settings)
    assert weights(net) - weights(cut(net, blocks=blocks)) == removed
