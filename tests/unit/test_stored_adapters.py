"""Low-rank students as artifacts: what is on the disk, and which weights are opened from it."""

import shutil
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from fewstep.artifacts.manifest import NAME, Manifest, identity
from fewstep.backbones.custom import CustomModel
from fewstep.backbones.low_rank import FILE, LowRank, merge
from fewstep.backbones.model import open_model, save_model, teacher_metadata
from fewstep.backbones.protocol import Backbone
from fewstep.backbones.registry import open_backbone
from fewstep.config.training import StudentTrainingConfig
from fewstep.core.errors import UserError
from fewstep.core.files import read_json, write_json
from fewstep.core.paths import MODELS, TEACHER, TRIPLETS
from fewstep.diffusion.denoiser import Prediction
from fewstep.diffusion.schedules import Cosine
from fewstep.export.pipeline import export
from fewstep.methods import reflow
from fewstep.sampling.frozen import frozen_backbone
from fewstep.sampling.show import save_grid
from fewstep.students.learn import Task, learn
from fewstep.training.lora import LoraSettings, attach, detach
from tests.interrupting import interrupted_and_resumed
from tests.miniature import draw_triplets, import_miniature, prepare_images
from tests.pipelines import CAPTIONS

TRAINING = StudentTrainingConfig(steps=3, batch_size=4, learning_rate=0.05)
FIRST: dict[str, Any] = {"rank": 2, "alpha": 3.0}
SECOND: dict[str, Any] = {"rank": 3, "alpha": 2.0, "targets": ["to_q", "proj_in"]}
"""Of other layers than the first, but for `to_q`; `proj_in` is a convolution."""


@pytest.fixture
def backbone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Backbone:
    """A miniature Stable Diffusion as the teacher of a project in the working folder, with triplets."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "no")
    monkeypatch.setenv("FEWSTEP_TRACKERS", "")
    monkeypatch.setenv("FEWSTEP_SAVE_EVERY_SECONDS", "0")
    backbone = import_miniature("sd")
    prepare_images()
    draw_triplets(backbone)
    return backbone


def train(name: str, start: str, lora: dict[str, Any] | None) -> Path:
    """Train a student; returns its artifact."""
    config = reflow.Config.model_validate({"from": start, "training": TRAINING, "lora": lora})
    learn(Task(f"reflow@{name}", name, "reflow", config, [TRIPLETS / "0"], 0))
    return MODELS / name


def weights(folder: Path, backbone: Backbone | None = None) -> dict[str, Tensor]:
    """All weights and buffers of the model in an artifact."""
    state: dict[str, Tensor] = open_model(folder, backbone or open_backbone(TEACHER)).net.state_dict()
    return state


def update(adapter: Path, layer: str, lora: dict[str, Any]) -> Tensor | float:
    """`(alpha / rank) B A` of one layer, float64; 0 where the adapter has none."""
    saved = load_file(adapter / FILE)
    names = [f"unet.{layer}.lora_{factor}.weight" for factor in "BA"]
    if names[0] not in saved:
        return 0.0
    b, a = (saved[name].double() for name in names)
    product = torch.einsum("or,ri...->oi...", b.flatten(1), a)
    return product * (lora["alpha"] / lora["rank"])


def by_hand(*adapters: tuple[Path, dict[str, Any]]) -> dict[str, Tensor]:
    """The teacher's weights with these adapters: summed in float64, rounded once."""
    merged = {}
    for name, weight in load_file(TEACHER / "unet/diffusion_pytorch_model.safetensors").items():
        total = weight.double()
        for folder, lora in adapters:
            total = total + update(folder, name.removesuffix(".weight"), lora)
        merged[name] = total.float()
    return merged


def assert_same(one: dict[str, Tensor], other: dict[str, Tensor]) -> None:
    """To the last bit."""
    assert one.keys() == other.keys()
    assert changed(one, other) == []


def changed(one: dict[str, Tensor], other: dict[str, Tensor]) -> list[str]:
    """Names of the weights that differ."""
    return [name for name in one if not torch.equal(one[name], other[name])]


def size(folder: Path) -> int:
    """Bytes of an artifact."""
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


def test_a_student_is_its_adapter_and_the_hash_of_its_teacher(backbone: Backbone) -> None:
    one = train("one", "teacher", FIRST)
    files = {str(file.relative_to(one)) for file in one.rglob("*") if file.is_file()}
    assert files == {NAME, f"lora/{FILE}"}
    assert size(one) < 0.2 * size(TEACHER / "unet"), "the layers of a miniature are small as well"
    manifest = Manifest.open(one, "model")
    assert manifest.made_from["teacher"] == identity(TEACHER)
    assert manifest.facts["adapters"] == ["lora"]
    assert_same(weights(one), by_hand((one / "lora", FIRST)))
    assert changed(weights(one), by_hand())


def test_a_student_of_a_student_has_both_adapters(backbone: Backbone) -> None:
    one, two = train("one", "teacher", FIRST), train("two", "one", SECOND)
    assert Manifest.open(two, "model").facts["adapters"] == ["lora/before/1", "lora"]
    assert not (two / "net").exists()
    assert (two / "lora/before/1" / FILE).read_bytes() == (one / "lora" / FILE).read_bytes()
    expected = by_hand((one / "lora", FIRST), (two / "lora", SECOND))
    shutil.rmtree(one)
    assert_same(weights(two), expected)
    three = train("three", "two", FIRST)
    before = [(two / "lora/before/1", FIRST), (two / "lora", SECOND)]
    assert_same(weights(three), by_hand(*before, (three / "lora", FIRST)))
    assert Manifest.open(three, "model").facts["adapters"] == ["lora/before/1", "lora/before/2", "lora"]


def test_after_a_whole_network_adapters_are_stored_with_one(backbone: Backbone) -> None:
    train("one", "teacher", FIRST)
    whole = train("whole", "one", None)
    low = train("low", "whole", FIRST)
    assert not (whole / "lora").exists()
    for folder in (whole, low):
        assert "adapters" not in Manifest.open(folder, "model").facts
        assert_same(weights(folder), load_file(folder / "net/diffusion_pytorch_model.safetensors"))
    assert (low / "lora" / FILE).is_file()
    assert changed(weights(low), weights(whole))


def test_interrupted_and_resumed_it_has_the_same_hash(backbone: Backbone) -> None:
    train("one", "teacher", FIRST)

    def trained() -> str:
        return (train("two", "one", SECOND) / NAME).read_text()

    expected = trained()
    assert interrupted_and_resumed(reflow.METHOD, trained) == expected


def test_another_teacher_is_refused(backbone: Backbone) -> None:
    one, manifest = train("one", "teacher", FIRST), TEACHER / NAME
    shutil.copytree(TEACHER, "kept")
    metadata = read_json(manifest)
    write_json(manifest, metadata | {"facts": metadata["facts"] | {"licence": "another"}})
    message = (
        "artifacts/models/teacher/manifest.json: another teacher than that of artifacts/models/one; "
        "artifacts/models/one is stored as adapters of its teacher: `dvc checkout` brings that teacher back, "
        "`dvc repro` makes the model from the present one"
    )
    with pytest.raises(UserError) as error:
        open_model(one, open_backbone(TEACHER))
    assert str(error.value) == message
    shutil.rmtree(TEACHER)
    with pytest.raises(UserError, match=r"teacher/manifest\.json: no such file; artifacts/models/one is sto"):
        open_model(one, backbone)
    shutil.copytree("kept", TEACHER)
    open_model(one, open_backbone(TEACHER))


def test_an_adapter_of_other_layers_than_it_names_is_refused(backbone: Backbone) -> None:
    one = train("one", "teacher", FIRST)
    adapter = LowRank.open(one / "lora", "unet")
    LowRank(adapter.weights, adapter.config | {"target_modules": ["to_q"]}).save(one / "lora", "unet")
    Manifest.seal(one, "model", read_json(one / NAME)["facts"], {"teacher": TEACHER})
    with pytest.raises(UserError, match="models/one/lora: does not fit the network of artifacts/models/tea"):
        open_model(one, backbone)


def test_an_artifact_with_the_whole_network_is_opened_as_it_is(backbone: Backbone) -> None:
    """As versions before this one wrote them; students of it are stored whole."""
    net = deepcopy(backbone.net)
    attach(net, LoraSettings.model_validate(FIRST), backbone.lora_targets, 0)
    for name, weight in net.named_parameters():
        if "lora_B" in name:
            nn.init.constant_(weight, 0.1)
    adapter = detach(net)
    student = replace(open_model(TEACHER, backbone), name="old", net=net)
    save_model(MODELS / "old", student, backbone, "reflow", {"teacher": TEACHER}, adapter)
    assert_same(weights(MODELS / "old"), net.state_dict())
    assert changed(net.state_dict(), by_hand())
    assert (train("new", "old", FIRST) / "net").is_dir()


def test_its_base_is_never_a_network_in_memory(backbone: Backbone, monkeypatch: pytest.MonkeyPatch) -> None:
    """Which may be rounded, as where models are only evaluated, and in the training itself."""
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    one = train("one", "teacher", FIRST)
    two = train("two", "one", SECOND)
    rounded: Any = frozen_backbone(TEACHER)
    assert rounded.net.conv_in.weight.dtype == torch.bfloat16
    adapters = [(one / "lora", FIRST), (two / "lora", SECOND)]
    assert_same(weights(two, rounded), by_hand(*adapters))
    assert rounded.net.conv_in.weight.dtype == torch.bfloat16


def test_it_is_exported_as_the_network_that_it_is(backbone: Backbone) -> None:
    one = train("one", "teacher", FIRST)
    model = open_model(one, backbone)
    export(Path("adapter"), model, one, TEACHER, backbone, steps=2)
    whole = MODELS / "whole"
    save_model(whole, replace(model, name="whole"), backbone, "reflow", {"teacher": TEACHER})
    export(Path("whole"), open_model(whole, backbone), whole, TEACHER, backbone, steps=2)
    for file in ("model.safetensors", "unet/diffusion_pytorch_model.safetensors"):
        assert_same(load_file(Path("adapter") / file), load_file(Path("whole") / file))
    assert (Path("adapter/lora") / FILE).read_bytes() == (one / "lora" / FILE).read_bytes()
    save_grid(one, [CAPTIONS[0]], Path("adapter.png"), steps=2)
    save_grid(whole, [CAPTIONS[0]], Path("whole.png"), steps=2)
    assert Path("adapter.png").read_bytes() == Path("whole.png").read_bytes()


def normalised() -> nn.Sequential:
    """A network with buffers that change in a forward pass, and weights that two layers share."""
    torch.manual_seed(1)
    net = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Linear(4, 4), nn.Embedding(5, 4))
    net[2].weight = net[0].weight
    return net


def adapted(net: nn.Module, *targets: str, seed: int = 0) -> LowRank:
    """The adapter of a network, with random values, merged."""
    attach(net, LoraSettings(rank=2, alpha=3.0, targets=targets), (), seed)
    generator = torch.Generator().manual_seed(seed)
    for name, weight in net.named_parameters():
        if "lora_" in name:
            nn.init.normal_(weight, generator=generator)
    return detach(net)


def test_a_change_beside_the_adapter_is_noticed() -> None:
    start = normalised().eval()
    net: Any = deepcopy(start)
    adapter = adapted(net, "0")
    assert adapter.is_the_only_change(net, start)
    net[1].train()(torch.randn(8, 4))
    assert not adapter.is_the_only_change(net, start), "a buffer has changed"
    biased: Any = deepcopy(start)
    adapter = adapted(biased, "0")
    with torch.no_grad():
        biased[0].bias.add_(1)
    assert not adapter.is_the_only_change(biased, start)


def test_adapters_of_any_layer_are_merged_as_they_were_trained() -> None:
    """A linear layer, one with the same weight, an embedding; nothing else of the network changes."""
    start = normalised()
    start[1].requires_grad_(False)
    trained, again = deepcopy(start), deepcopy(start)
    first = adapted(trained, "0", "3")
    state = torch.random.get_rng_state()
    merge(again, [first])
    assert torch.equal(torch.random.get_rng_state(), state)
    assert_same(again.state_dict(), trained.state_dict())
    kept = {
        name for name, value in start.state_dict().items() if torch.equal(value, again.state_dict()[name])
    }
    assert "2.weight" in kept and not {"0.weight", "3.weight"} & kept
    assert [w.requires_grad for w in again.parameters()] == [True, True, False, False, True, True, True]
    assert [type(layer) for layer in again] == [type(layer) for layer in start]
    assert not hasattr(again, "peft_config")
    second = adapted(trained, "0", "2", seed=1)
    merge(both := deepcopy(start), [first, second])
    for name, value in both.state_dict().items():
        torch.testing.assert_close(value, trained.state_dict()[name], atol=1e-6, rtol=1e-6)


def test_a_custom_models_student_is_stored_so(tmp_path: Path) -> None:
    """Of a network without a configuration."""
    net: nn.Module = nn.Sequential(nn.Conv2d(2, 2, 3, padding=1))
    family, teacher = CustomModel(net, (2, 4, 4), Cosine(), Prediction.V), tmp_path / "teacher"
    family.save_net(family.net, teacher / "net")
    Manifest.seal(teacher, "teacher", teacher_metadata("custom", family), {})
    net = deepcopy(family.net)
    adapter = adapted(net, "0")
    model = replace(open_model(teacher, family), name="one", net=net)
    one = tmp_path / "one"
    save_model(one, model, family, "reflow", {"teacher": teacher}, adapter, start=teacher)
    assert not (one / "net").exists() and adapter.is_the_only_change(net, family.net)
    kept = deepcopy(family.net.state_dict())
    assert_same(open_model(one, family).net.state_dict(), net.state_dict())
    assert_same(family.net.state_dict(), kept)
