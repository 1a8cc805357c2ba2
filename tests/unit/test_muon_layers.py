"""Which weights Muon is for, on the real classes of every network that the chain trains."""

from collections.abc import Callable, Iterator

import pytest
import torch
from torch import nn

from fewstep.backbones.pipeline import DiffusersBackbone
from fewstep.backbones.registry import family
from fewstep.config.training import TrainingConfig
from fewstep.features.attribute_classifier import AttributeClassifier
from fewstep.training.lora import LoraSettings, attach
from fewstep.training.muon import Muon, is_hidden
from fewstep.training.optimization import optimizers_of, trained_weights
from tests import pipelines

TIME = ("time_embedding.linear_1", "time_embedding.linear_2")
SIZE = ("add_embedding.linear_1", "add_embedding.linear_2")
CAPTION = ("caption_projection.linear_1", "caption_projection.linear_2")
UNET = ("conv_in", *TIME, "conv_out")


def embedders(prefix: str, *names: str) -> tuple[str, ...]:
    return tuple(f"{prefix}.{name}_embedder.linear_{i}" for name in names for i in (1, 2))


OUTER = {
    "sd": UNET,
    "sdxl": (*UNET, *SIZE),
    "pixel": (*UNET, "class_embedding"),
    "pixart": (
        "pos_embed.proj",
        *embedders("adaln_single.emb", "timestep"),
        "adaln_single.linear",
        *CAPTION,
        "proj_out",
    ),
    "sd3": (
        "pos_embed.proj",
        *embedders("time_text_embed", "timestep", "text"),
        "context_embedder",
        "norm_out.linear",
        "proj_out",
    ),
    "flux": (
        *embedders("time_text_embed", "timestep", "guidance", "text"),
        "x_embedder",
        "context_embedder",
        "norm_out.linear",
        "proj_out",
    ),
    "sana": (
        "patch_embed.proj",
        *embedders("time_embed.emb", "timestep"),
        "time_embed.linear",
        *CAPTION,
        "proj_out",
    ),
    "AutoencoderKL": (
        *("encoder.conv_in", "encoder.conv_out", "quant_conv"),
        *("post_quant_conv", "decoder.conv_in", "decoder.conv_out"),
    ),
    "CLIPTextModel": ("embeddings.token_embedding", "embeddings.position_embedding"),
    "judge": ("stem.0", "penultimate.0", "heads"),
}
"""First, last and embedding layers of each network."""
HIDDEN = {
    "sd": "mid_block.attentions.0.proj_out",
    "sdxl": "up_blocks.0.attentions.0.proj_out",
    "pixel": "mid_block.attentions.0.to_q",
    "pixart": "transformer_blocks.1.ff.net.0.proj",
    "sd3": "transformer_blocks.0.norm1.linear",
    "flux": "single_transformer_blocks.0.proj_out",
    "sana": "transformer_blocks.0.ff.conv_inverted",
    "AutoencoderKL": "decoder.mid_block.resnets.0.conv1",
    "CLIPTextModel": "encoder.layers.0.mlp.fc1",
    "judge": "stages.0.0.0",
}
"""One that a list of names may take for an outer one, or may miss."""
TABLES = {"pixart", "sana"}


def denoiser(name: str) -> nn.Module:
    options = {"classes": 10} if name == "pixel" else {}
    pipeline = pipelines.MAKERS[name](**options)
    net: nn.Module = pipeline.components[family(name).net_part]
    return net


MAKERS: dict[str, Callable[[], nn.Module]] = {
    "AutoencoderKL": pipelines.vae,
    "CLIPTextModel": lambda: pipelines.clip(16),
    "judge": lambda: AttributeClassifier({"colour": ("red", "blue")}),
}


def network(name: str) -> nn.Module:
    return MAKERS[name]() if name in MAKERS else denoiser(name)


def layers(net: nn.Module) -> Iterator[str]:
    """Layers whose weight is a matrix, a kernel or an embedding's table."""
    for name, module in net.named_modules():
        if isinstance(module, (nn.Linear, nn.Conv2d, nn.Embedding)):
            yield name


@pytest.mark.parametrize("name", OUTER)
def test_muon_takes_every_layer_of_a_block_and_no_other(name: str) -> None:
    net = network(name)
    matrices = {f"{layer}.weight" for layer in layers(net)}
    hidden = {key for key, weight in net.named_parameters() if is_hidden(f"net/{key}", weight)}
    assert matrices - hidden == {f"{layer}.weight" for layer in OUTER[name]}
    assert hidden <= matrices and f"{HIDDEN[name]}.weight" in hidden
    tables = {key for key, weight in net.named_parameters() if key.endswith("scale_shift_table")}
    assert bool(tables) == (name in TABLES)


@pytest.mark.parametrize("name", ["sd", "sdxl", "pixart", "sd3", "flux", "sana"])
def test_an_adapters_matrices_follow_their_layer(name: str) -> None:
    net, kind = denoiser(name), family(name)
    assert issubclass(kind, DiffusersBackbone)
    before = {key for key, weight in net.named_parameters() if is_hidden(f"net/{key}", weight)}
    attach(net, LoraSettings(rank=2, alpha=2.0), kind.lora_targets, 0)
    trained = {key: weight for key, weight in net.named_parameters() if weight.requires_grad}
    assert trained
    for key, weight in trained.items():
        layer = key.split(".lora_")[0]
        assert is_hidden(f"net/{key}", weight) == (f"{layer}.weight" in before), key
    assert any(is_hidden(f"net/{key}", weight) for key, weight in trained.items())


def test_a_network_of_ones_own_has_its_blocks_in_a_list() -> None:
    """The first layer may be in a list of plain layers; an embedding may lie in a block."""
    matrix, vector = torch.zeros(4, 4), torch.zeros(4)
    assert is_hidden("net/blocks.0.2.weight", matrix)
    assert is_hidden("net/layers.3.attention.in_proj_weight", matrix)
    assert not is_hidden("net/blocks.0.2.weight", vector)
    assert not is_hidden("net/blocks.0.2.bias", vector)
    assert not is_hidden("net/time.0.weight", matrix)
    assert not is_hidden("net/first.weight", matrix)
    assert not is_hidden("net/blocks.0.label_embed.weight", matrix)


def test_each_weight_has_one_optimizer() -> None:
    training = TrainingConfig(steps=1, batch_size=1, learning_rate=1e-3, optimizer="muon")
    weights = trained_weights({"text_encoder": pipelines.clip(16), "net": denoiser("sd")})
    adamw, muon = optimizers_of(weights, training)
    assert isinstance(adamw, torch.optim.AdamW) and isinstance(muon, Muon)
    names = {id(weight): name for name, weight in weights.items()}
    taken = [[names[id(w)] for group in each.param_groups for w in group["params"]] for each in (adamw, muon)]
    assert sorted([*taken[0], *taken[1]]) == sorted(names.values())
    assert "net/conv_out.weight" in taken[0] and "net/mid_block.attentions.0.proj_out.weight" in taken[1]
