"""CLIP and DINOv2 by local path: miniatures of the real classes, saved and opened as users' folders are."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers as t
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from fewstep.core.errors import UserError
from fewstep.core.keyed import Key
from fewstep.data.pixels import from_uint8
from fewstep.features.clip import Clip
from fewstep.features.network import open_features
from tests.pipelines import CAPTIONS, clip_tokenizer

SIDE, PATCH, WIDTH = 28, 7, 16
VISION = {
    "hidden_size": WIDTH,
    "intermediate_size": 32,
    "num_hidden_layers": 5,
    "num_attention_heads": 2,
    "patch_size": PATCH,
}
MEAN, STD = [0.5, 0.4, 0.3], [0.3, 0.25, 0.2]
FAMILIES = ("clip", "dinov2", "dinov2_with_registers")


def make(family: str, folder: Path) -> Path:
    """A folder as transformers saves it. DINOv2 was trained at another side than it is used at."""
    torch.manual_seed(0)
    network = clip() if family == "clip" else dinov2(family)
    network.save_pretrained(folder)
    processor = t.CLIPImageProcessor if family == "clip" else t.BitImageProcessor
    processor(
        size={"shortest_edge": SIDE if family == "clip" else 32},
        crop_size={"height": SIDE, "width": SIDE},
        image_mean=MEAN,
        image_std=STD,
        resample=3,
    ).save_pretrained(folder)
    return folder


def clip() -> Any:
    tokenizer = clip_tokenizer()
    text = {name: value for name, value in VISION.items() if name != "patch_size"} | {
        "vocab_size": len(tokenizer),
        "max_position_embeddings": 12,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    vision = VISION | {"image_size": SIDE}
    return t.CLIPModel(t.CLIPConfig(text_config=text, vision_config=vision, projection_dim=8))


def dinov2(family: str) -> Any:
    config = t.Dinov2Config if family == "dinov2" else t.Dinov2WithRegistersConfig
    options = {name: value for name, value in VISION.items() if name != "intermediate_size"}
    return t.AutoModel.from_config(config(image_size=42, **options))


@pytest.fixture(params=FAMILIES)
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    return make(request.param, tmp_path / request.param)


@pytest.fixture
def clip_folder(tmp_path: Path) -> Path:
    return make("clip", tmp_path / "clip")


def pixels(count: int, side: int = 32) -> np.ndarray:
    """Noise, uint8 `[count, side, side, 3]`."""
    uniform = Key(0, "test/pixels").uniform(range(count), side * side * 3)
    return (uniform * 256).astype(np.uint8).reshape(count, side, side, 3)


def prepared(images: np.ndarray) -> Tensor:
    """What the published metrics feed: Pillow's bicubic resize of 8-bit images, normalised."""
    resized = [Image.fromarray(image).resize((SIDE, SIDE), Image.Resampling.BICUBIC) for image in images]
    x = torch.from_numpy(np.stack([np.asarray(image) for image in resized])).float() / 255
    return ((x - torch.tensor(MEAN)) / torch.tensor(STD)).permute(0, 3, 1, 2)


def outputs(folder: Path, x: Tensor) -> tuple[Tensor, Any]:
    """transformers' own features of prepared images, and all hidden states of its vision model."""
    with torch.no_grad():
        if folder.name == "clip":
            model = t.CLIPModel.from_pretrained(folder)
            output = model(
                pixel_values=x, input_ids=torch.tensor([[0, 1]]), attention_mask=torch.ones(1, 2).long()
            )
            return output.image_embeds, model.vision_model(x, output_hidden_states=True).hidden_states
        output = t.AutoModel.from_pretrained(folder)(x, output_hidden_states=True)
        return output.last_hidden_state[:, 0], output.hidden_states


def test_features_are_those_of_transformers(folder: Path) -> None:
    network, images = open_features(folder), pixels(3)
    expected, _ = outputs(folder, prepared(images))
    torch.testing.assert_close(network.features(from_uint8(torch.from_numpy(images))), expected)
    kernels = {"clip": "gaussian"}
    assert network.kernel == kernels.get(folder.name, "polynomial")
    assert network.name == f"{folder.name}-{WIDTH}-patch{PATCH}-{SIDE}"
    if folder.name == "clip":
        torch.testing.assert_close(expected.norm(dim=1), torch.ones(3))


def test_the_preprocessor_of_the_folder_gives_the_same_input(clip_folder: Path) -> None:
    """torchvision's fixed-point resize differs by at most one of 255 levels."""
    network, images = Clip.open(clip_folder), pixels(2, 64)
    processor = t.CLIPImageProcessor.from_pretrained(clip_folder)
    theirs = processor(images=[Image.fromarray(image) for image in images], return_tensors="pt")
    ours = network.prepare(from_uint8(torch.from_numpy(images)))
    assert (ours - theirs["pixel_values"]).abs().max() < 1.01 / 255 / min(STD)


def test_features_depend_on_no_other_image_and_on_8_bits(folder: Path) -> None:
    network, x = open_features(folder), from_uint8(torch.from_numpy(pixels(4)))
    torch.testing.assert_close(network.features(x)[2:3], network.features(x[2:3]))
    assert torch.equal(network.features(x * 0.9999 + 1e-3), network.features(x))
    assert not torch.allclose(network.features(-x), network.features(x), atol=1e-2)
    assert torch.equal(open_features(folder).features(x), network.features(x))


def test_networks_are_frozen(folder: Path) -> None:
    network = open_features(folder)
    assert isinstance(network, nn.Module) and not network.training
    assert not any(weight.requires_grad for weight in network.parameters())
    assert not network.features(from_uint8(torch.from_numpy(pixels(1)))).requires_grad


def test_maps_are_the_patches_of_some_blocks(folder: Path) -> None:
    network = open_features(folder)
    x = from_uint8(torch.from_numpy(pixels(2, SIDE))).requires_grad_()  # of the network's side: no rounding
    maps = network.maps(x)
    _, hidden = outputs(folder, prepared(pixels(2, SIDE)))
    cells = SIDE // PATCH
    assert [m.shape for m in maps] == [(2, WIDTH, cells, cells)] * 4
    for patches, block in zip(maps, (2, 3, 4, 5), strict=True):
        torch.testing.assert_close(patches[:, :, 1, 2], hidden[block][:, 6 - cells * cells])
    sum(m.square().mean() for m in maps).backward()  # type: ignore[union-attr]
    assert x.grad is not None and x.grad.abs().amin() > 0


def test_the_clip_score_is_the_models_own_logit(clip_folder: Path) -> None:
    clip_tokenizer().save_pretrained(clip_folder)
    network, images = Clip.open(clip_folder), pixels(4)
    prompts = [*CAPTIONS, "a", "a small red star and a large blue circle and a small green square"]
    model = t.CLIPModel.from_pretrained(clip_folder)
    for text in (1, -1):  # of the text's embedding: every cosine is once below 0
        model.text_projection.weight.data *= text
        network.text_projection.weight.data *= text
        tokens = clip_tokenizer()(prompts, padding=True, truncation=True, max_length=12, return_tensors="pt")
        with torch.no_grad():
            logits = model(pixel_values=prepared(images), **tokens).logits_per_image / model.logit_scale.exp()
        scores = network.prompt_similarity(from_uint8(torch.from_numpy(images)), prompts)
        torch.testing.assert_close(scores, 100 * logits.diagonal().clamp(min=0), atol=1e-3, rtol=1e-4)


def test_the_clip_score_needs_a_tokenizer_and_features_do_not(clip_folder: Path) -> None:
    network, x = Clip.open(clip_folder), from_uint8(torch.from_numpy(pixels(1)))
    assert network.features(x).shape == (1, 8)
    with pytest.raises(UserError, match=r"no tokenizer.*vocab\.json"):
        network.prompt_similarity(x, ["a star"])


@pytest.mark.parametrize("form", ["numbers", "processor", "no crop"])
def test_every_form_of_a_preprocessor_is_read(clip_folder: Path, form: str) -> None:
    file, x = clip_folder / "preprocessor_config.json", from_uint8(torch.from_numpy(pixels(2)))
    expected = open_features(clip_folder).features(x)
    values = json.loads(file.read_text())
    if form == "numbers":  # transformers < 4.25
        file.write_text(json.dumps(values | {"size": 40, "crop_size": SIDE}))
    elif form == "processor":  # as CLIPProcessor saves it, transformers >= 5
        file.unlink()
        t.CLIPProcessor(t.CLIPImageProcessor(**values), clip_tokenizer()).save_pretrained(clip_folder)
        assert not file.exists()
    else:
        file.write_text(json.dumps({**values, "crop_size": None, "size": {"height": SIDE, "width": SIDE}}))
    assert torch.equal(open_features(clip_folder).features(x), expected)


def without(key: str) -> Callable[[Path], None]:
    return edited("preprocessor_config.json", lambda values: values.pop(key))


def edited(name: str, edit: Callable[[dict[str, Any]], Any]) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        values = json.loads((folder / name).read_text())
        edit(values)
        (folder / name).write_text(json.dumps(values))

    return change


def pickled(folder: Path) -> None:
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()


def holed(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    weights.pop("visual_projection.weight")
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


DAMAGES: dict[str, tuple[Callable[[Path], Any], str]] = {
    "no weights": (lambda f: (f / "model.safetensors").unlink(), r"clip: has no weights"),
    "a pickle": (pickled, r"pytorch_model\.bin: is a pickle.*CLIPModel\.from_pretrained"),
    "cut short": (lambda f: (f / "model.safetensors").write_bytes(b"\x08" * 99), "cannot be loaded as CLIP"),
    "a hole": (holed, r"1 weights.*visual_projection\.weight"),
    "another size": (
        edited("config.json", lambda v: v["vision_config"].update(hidden_size=32)),
        "cannot be loaded as CLIPModel",
    ),
    "no preprocessor": (
        lambda f: (f / "preprocessor_config.json").unlink(),
        r"preprocessor_config\.json: no such file",
    ),
    "no mean": (without("image_mean"), r"preprocessor_config\.json: image_mean: is missing"),
    "a strip": (
        edited("preprocessor_config.json", lambda v: v["crop_size"].update(width=30)),
        r"preprocessor_config\.json: crop_size = .*one side",
    ),
    "another side": (
        edited("preprocessor_config.json", lambda v: v.update(crop_size=30)),
        "makes images of side 30, its network takes 28",
    ),
    "unknown": (
        edited("config.json", lambda v: v.update(model_type="siglip")),
        "model_type clip, model_type dinov2.*found model_type siglip",
    ),
    "no type": (edited("config.json", lambda v: v.pop("model_type")), "found something else"),
    "broken": (lambda f: (f / "config.json").write_text("{"), r"config\.json: not readable as JSON"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_folder_is_refused_by_name(clip_folder: Path, damage: str) -> None:
    change, expected = DAMAGES[damage]
    change(clip_folder)
    with pytest.raises(UserError, match=expected):
        open_features(clip_folder)


def test_weights_in_shards_are_opened(clip_folder: Path, tmp_path: Path) -> None:
    sharded = tmp_path / "sharded"
    t.CLIPModel.from_pretrained(clip_folder).save_pretrained(sharded, max_shard_size="8KB")
    shutil.copy(clip_folder / "preprocessor_config.json", sharded)
    assert len(list(sharded.glob("*.safetensors"))) > 1
    x = from_uint8(torch.from_numpy(pixels(1)))
    torch.testing.assert_close(open_features(sharded).features(x), open_features(clip_folder).features(x))
    min(sharded.glob("*.safetensors")).unlink()
    with pytest.raises(UserError, match="cannot be loaded as CLIPModel"):
        open_features(sharded)
