"""Low-rank students with an input that their start does not take: it is trained, too, and stored."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from torch import Tensor

from fewstep.backbones.low_rank import FILE
from fewstep.backbones.model import Model, open_model, save_model
from fewstep.backbones.protocol import Backbone
from fewstep.core.files import read_json
from fewstep.core.paths import MODELS, TEACHER, TRIPLETS
from fewstep.export.pipeline import export
from fewstep.methods import direct, flow_map
from fewstep.students.learn import Task, learn
from fewstep.students.start import start_and_student
from tests.miniature import draw_triplets, import_miniature, prepare_images

TRAINING = {"steps": 3, "batch_size": 4, "learning_rate": 0.01}
LORA = {"rank": 2, "alpha": 2.0}
PROJECTION = "time_embedding.cond_proj.weight"
FLOW_MAP = {"method": "flow_map", "from": "teacher", "training": TRAINING, "lora": LORA}


@pytest.fixture
def backbone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Backbone:
    """The teacher of a project with triplets at several guidance scales."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "no")
    monkeypatch.setenv("FEWSTEP_TRACKERS", "")
    prepare_images(64)
    backbone = import_miniature("sd")
    draw_triplets(backbone, guidance=(1.0, 3.0))
    return backbone


@pytest.fixture
def trained(monkeypatch: pytest.MonkeyPatch) -> list[Model]:
    """Every student as it was trained, before it is stored."""
    models: list[Model] = []

    def record(folder: Path, model: Model, *arguments: Any, **more: Any) -> None:
        models.append(model)
        save_model(folder, model, *arguments, **more)

    monkeypatch.setattr("fewstep.students.learn.save_model", record)
    return models


def student(name: str, module: Any, values: dict[str, Any]) -> dict[str, Any]:
    """Train a student; the facts of its manifest."""
    method = values["method"]
    learn(Task(f"distill@{name}", name, method, module.Config.model_validate(values), [TRIPLETS / "0"], 0))
    facts: dict[str, Any] = read_json(MODELS / name / "manifest.json")["facts"]
    return facts


def weights_of(model: Model) -> dict[str, Tensor]:
    state: dict[str, Tensor] = model.net.state_dict()
    return state


def same(one: Model, other: Model) -> bool:
    """Whether two models have the same inputs and weights."""
    pairs = weights_of(one), weights_of(other)
    return (
        one.denoiser.inputs == other.denoiser.inputs
        and pairs[0].keys() == pairs[1].keys()
        and all(torch.equal(value, pairs[1][name]) for name, value in pairs[0].items())
    )


def test_the_input_is_trained_and_the_base_is_shared(backbone: Backbone) -> None:
    start = open_model(TEACHER, backbone)
    config = flow_map.Config.model_validate(FLOW_MAP)
    start, begun = start_and_student(start, "student", backbone, config, 0)
    base = {id(weight) for weight in start.net.parameters()}
    own = {name for name, weight in begun.net.named_parameters() if id(weight) not in base}
    learned = {name for name, weight in begun.net.named_parameters() if weight.requires_grad}
    assert own == learned and PROJECTION in own
    assert all(".lora_" in name for name in own - {PROJECTION})
    assert PROJECTION not in weights_of(start), "the start is as before"


def test_it_is_stored_as_its_adapter_and_opened_as_it_was_trained(
    backbone: Backbone, trained: list[Model]
) -> None:
    facts = student("map", flow_map, FLOW_MAP)
    assert facts["adapters"] == ["lora"] and not (MODELS / "map/net").exists()
    with safe_open(MODELS / "map/lora" / FILE, "pt") as file:
        names = set(file.keys())
        assert file.get_tensor(f"unet.{PROJECTION}").abs().max() > 0
        assert facts["lora"]["parameters"] == sum(file.get_tensor(name).numel() for name in names)
    assert {name for name in names if ".lora_" not in name} == {f"unet.{PROJECTION}"}
    assert same(open_model(MODELS / "map", backbone), trained[0])


def test_a_student_of_it_has_both_adapters(backbone: Backbone, trained: list[Model]) -> None:
    student("map", flow_map, FLOW_MAP)
    facts = student("further", flow_map, FLOW_MAP | {"from": "map"})
    assert facts["adapters"] == ["lora/before/1", "lora"] and facts["inputs"] == ["end_time"]
    opened = open_model(MODELS / "further", backbone)
    assert not same(opened, trained[0])
    # Two updates were rounded when they were merged one after the other, and once when both were merged.
    torch.testing.assert_close(weights_of(opened), weights_of(trained[1]), rtol=0, atol=1e-6)
    assert torch.equal(weights_of(opened)[PROJECTION], weights_of(trained[0])[PROJECTION])


def test_with_a_further_input_than_its_starts_it_is_stored_whole(
    backbone: Backbone, trained: list[Model]
) -> None:
    """The adapter of the start fits a network with the start's inputs alone."""
    student("map", flow_map, FLOW_MAP)
    values = FLOW_MAP | {"from": "map", "guidance_embedding": True, "guidance": (1.0, 3.0)}
    facts = student("guided", flow_map, values)
    assert "adapters" not in facts and (MODELS / "guided/net").is_dir()
    assert facts["inputs"] == ["end_time", "guidance"]
    opened = open_model(MODELS / "guided", backbone)
    assert same(opened, trained[1])
    before, after = (weights_of(model)[PROJECTION] for model in trained)
    width = before.shape[1]
    assert after.shape[1] == 2 * width and after[:, width:].abs().max() > 0


def test_guidance_is_part_of_an_adapter(backbone: Backbone, trained: list[Model]) -> None:
    values = {"method": "direct", "from": "teacher", "training": TRAINING, "lora": LORA}
    facts = student("guided", direct, values | {"guidance_embedding": True})
    assert facts["adapters"] == ["lora"] and facts["inputs"] == ["guidance"]
    assert same(open_model(MODELS / "guided", backbone), trained[0])


def test_its_adapter_is_not_exported_for_stock_pipelines(backbone: Backbone, tmp_path: Path) -> None:
    """A stock network has no place for the input's weights; the exported pipeline has the whole network."""
    student("map", flow_map, FLOW_MAP)
    model = open_model(MODELS / "map", backbone)
    export(tmp_path / "out", model, MODELS / "map", TEACHER, backbone, steps=1)
    assert not (tmp_path / "out/lora").exists()
    assert (tmp_path / "out/unet").is_dir()
