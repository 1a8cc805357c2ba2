"""`fewstep check` on compressed models: each model's own size, and starts and sizes that do not fit."""

import json
import shutil
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, get_args

import pytest
import yaml
from diffusers import UNet2DConditionModel
from tools.imports import ROOT

from fewstep.chain import Chain, load_chain
from fewstep.checks import keys, settings
from fewstep.checks.designs import Networks, designs, is_guided, networks
from fewstep.checks.memory import Setup, advice, need
from fewstep.checks.plan import plan, trainings
from fewstep.checks.teacher import design
from fewstep.checks.tracing import Design, parameters
from fewstep.compression.unet import ALIASES, SIZES
from fewstep.config.base import validate
from fewstep.core.errors import UserError
from fewstep.methods import compress
from fewstep.methods.compress import Config, Size
from tests.pipelines import make

TRAINING = {"steps": 2, "batch_size": 16, "learning_rate": 1.0e-4}
SMALL = {"from": "teacher", "unet": "small", "data": "triplets", "training": TRAINING}
DIRECT = {"from": "small", "method": "direct", "training": TRAINING}


@pytest.fixture(autouse=True)
def _project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def chain_of(dotted: Mapping[str, Any]) -> Chain:
    """The default chain with some values replaced."""
    values = yaml.safe_load((ROOT / "params.yaml").read_text())
    for key, value in dotted.items():
        *path, last = key.split(".")
        section = values
        for part in path:
            section = section[part]
        section[last] = json.loads(json.dumps(value))
    Path("params.yaml").write_text(yaml.safe_dump(values))
    return load_chain()


def faults(dotted: Mapping[str, Any]) -> list[str]:
    return [*settings.faults(chain_of(dotted))]


def test_the_plan_and_the_memory_are_of_each_models_own_network() -> None:
    made = {"compress.small": SMALL, "students.tail": DIRECT}
    chain = chain_of({**made, "evaluate.models.tail": [1], "export.tail": {"steps": 1}})
    teacher = design(chain)
    assert teacher is not None
    by_model = designs(chain, teacher)
    assert by_model["small"] is by_model["tail"] is not teacher
    assert by_model["reflow"] is by_model["one_step"] is teacher
    assert networks(chain, by_model, "small") == Networks(by_model["small"], teacher, teacher)
    assert networks(chain, by_model, "tail") == Networks(by_model["small"], by_model["small"], teacher)
    assert networks(chain, by_model, "train_teacher, denoiser") == Networks(teacher, teacher, teacher)

    large: Any = teacher.make()
    middle = sum(weight.numel() for weight in large.mid_block.parameters())
    whole = sum(weight.numel() for weight in large.parameters())
    disk = {stage.name: stage.disk for stage in plan(chain)}
    assert disk["small"] == disk["tail"] == 4 * (whole - middle)
    assert disk["reflow"] == disk["train_teacher, denoiser"] == 4 * whole
    assert (disk["export@tail"], disk["export@one_step"]) == (8 * (whole - middle), 8 * whole)


def test_the_memory_counts_the_larger_start_and_the_larger_fake(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "no")
    unet = partial(
        UNet2DConditionModel,
        sample_size=8,
        block_out_channels=(8, 8),
        down_block_types=("CrossAttnDownBlock2D",) * 2,
        up_block_types=("CrossAttnUpBlock2D",) * 2,
        cross_attention_dim=8,
        attention_head_dim=2,
        norm_num_groups=2,
    )
    large, small = Design("sd", unet), Design("sd", partial(unet, layers_per_block=1))
    setup = Setup(rows=1, optimizer="adamw", ema=False, start=True)
    # Weights and AdamW's two averages of the student, and the weights of its start.
    assert need(small, setup, large, large).state == 4 * (3 * parameters(small) + parameters(large))
    assert need(small, setup).state == 4 * 4 * parameters(small)
    further = Setup(rows=1, optimizer="adamw", ema=False, start=True, further=("adamw",), teacher=True)
    expected = 4 * (4 * parameters(small) + 3 * parameters(large) + parameters(large))
    assert need(small, further, small, large).state == expected
    assert need(small, setup, large, large).parameters == parameters(small) < parameters(large)


def test_no_adapter_is_advised_where_none_is_possible() -> None:
    chain = chain_of({"compress.small": SMALL})
    teacher = design(chain)
    assert teacher is not None
    all_setups = trainings(chain)
    setups = {"small": all_setups["small"], "reflow": replace(all_setups["reflow"], optimizer="adamw")}
    messages = {name: str(advice(teacher, setup, 1)) for name, setup in setups.items()}
    assert "lora" in messages["reflow"] and "lora" not in messages["small"]
    assert messages["small"].startswith("nothing makes it fit; FEWSTEP_MICRO_BATCH=1 ")


def test_a_compressed_teacher_is_guided_as_it_was() -> None:
    chain = chain_of({"compress.small": SMALL, "students.tail": DIRECT})
    assert {name: is_guided(chain, name) for name in ("teacher", "small", "tail", "reflow")} == {
        "teacher": True,
        "small": True,
        "tail": False,
        "reflow": False,
    }


@pytest.mark.parametrize(
    ("dotted", "expected"),
    [
        ({"compress.small": SMALL}, []),
        ({"compress.small": SMALL | {"unet": "tiny"}, "students.tail": DIRECT}, []),
        (
            {"compress.small": SMALL | {"unet": "sdxs"}, "students.tail": DIRECT},
            ["compress.small: unet = 'sdxs': no block with attention to the text would be left"],
        ),
        (
            {"compress.small": SMALL | {"unet": "base"}},
            ["compress.small: unet = 'base': every block has one layer already; possible sizes of this "],
        ),
        (
            {"compress.small": SMALL, "compress.smaller": SMALL | {"from": "small"}},
            ["compress.smaller: unet = 'small': there is no middle block to be removed"],
        ),
        (
            {"compress.small": SMALL | {"attention": [False, False]}},
            ["compress.small: attention = [False, False]: no block with attention to the text would be left"],
        ),
        ({"compress.small": SMALL | {"attention": [False, True]}}, []),
        (
            {"compress.small": {**SMALL, "unet": None, "blocks": {"transformer_blocks": 2}}},
            ["compress.small: blocks: a UNet2DConditionModel is made smaller by `unet`"],
        ),
        (
            {"compress.small": SMALL | {"from": "one_step"}, "students.tail": DIRECT},
            ["compress.small: task_weight: fits a teacher with noise: fresh"],
        ),
        (
            {"compress.small": SMALL | {"from": "reflow"}},
            ["compress.small: task_weight: fits a teacher with noise: fresh"],
        ),
        (
            {"compress.small": SMALL | {"noise": "pairs"}},
            ["compress.small: task_weight: fits a teacher with noise: fresh"],
        ),
        ({"compress.small": SMALL | {"from": "one_step", "noise": "pairs"}}, []),
        ({"compress.small": SMALL | {"from": "one_step", "task_weight": 0}}, []),
        (
            {"compress.small": SMALL, "export.small": {"steps": 4}, "evaluate.models.small": [4]},
            ["export.small: is sampled as its teacher is"],
        ),
        (
            {
                "compress.small": SMALL,
                "students.tail": {**DIRECT, "lora": {"rank": 2, "alpha": 2, "targets": ["mid_block.x"]}},
            },
            ["students.tail.lora.targets: mid_block.x: no layer"],
        ),
    ],
)
def test_what_does_not_fit_is_reported_before_anything_runs(
    dotted: dict[str, Any], expected: list[str]
) -> None:
    messages = faults(dotted)
    assert len(messages) == len(expected), messages
    for message, wanted in zip(messages, expected, strict=True):
        assert message.startswith(f"params.yaml: {wanted}"), message


def test_a_foreign_teacher_without_a_rule_is_reported_before_anything_runs() -> None:
    make("pixel", Path("pixels"))
    own = {"backbone": "pixel", "train": [], "load": ["pixels"], "adopt": []}
    dotted = {"teacher": own, "features": "x.pt", "data.resolution": 16, "export": {}}
    message = "params.yaml: compress.small: unet: no rule to make a UNet2DModel smaller"
    assert any(fault.startswith(message) for fault in faults({**dotted, "compress.small": SMALL}))


def test_a_name_is_taken_once() -> None:
    for name, where in (
        ("reflow", "compress.reflow"),
        ("teacher", "compress.teacher"),
        ("halve-4", "compress."),
    ):
        with pytest.raises(UserError, match=rf"{where}.*: this name is taken or reserved"):
            chain_of({"compress": {name: SMALL}})


def test_a_key_of_an_entry_that_dvc_reads_is_missed_before_dvc_does() -> None:
    shutil.copy(ROOT / "dvc.yaml", "dvc.yaml")
    assert [*keys.faults(chain_of({"compress.small": SMALL}))] == []
    entry = {key: value for key, value in SMALL.items() if key != "data"}
    (message,) = keys.faults(chain_of({"compress.small": entry}))
    assert message.startswith("params.yaml: compress.small.data: is missing; DVC needs it")


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({}, "give either unet"),
        ({"unet": "tiny", "blocks": {}}, "give either unet"),
        ({"unet": "medium"}, "unet"),
        ({"blocks": {"transformer_blocks": 2}, "attention": [False]}, "attention: of a U-Net"),
        ({"size": "tiny"}, "is named `unet`, because DVC does not see changes of a key named `size`"),
        ({"unet": "tiny", "lora": {"rank": 2, "alpha": 2}}, "for a later model"),
        ({"unet": "tiny", "guidance_embedding": True}, "for a later model"),
        ({"unet": "tiny", "noise": "pairs", "data": "encoded"}, "real images have no noise of their own"),
        ({"unet": "tiny", "task_weight": 0, "output_weight": 0, "feature_weight": 0}, "there is no loss"),
        ({"unet": "tiny", "output_weight": -1}, "greater than or equal to 0"),
        ({"unet": "tiny", "unconditional": 1}, "less than 1"),
    ],
)
def test_impossible_settings_are_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        compress.Config.model_validate({"from": "teacher", "training": TRAINING} | values)


def test_the_plan_of_a_size_that_is_not_possible_names_its_place() -> None:
    chain = chain_of({"compress.small": SMALL | {"unet": "sdxs"}})
    with pytest.raises(UserError, match=r"params\.yaml: compress\.small: unet = 'sdxs': no block .* left"):
        plan(chain)


def test_a_decoder_of_a_start_without_steps_names_it() -> None:
    entry = {"from": "reflow", "data": "triplets", "training": TRAINING}
    (fault,) = faults({"decoder.fast": entry})
    assert "decoder.fast: own_share: reflow was not made for a number of steps" in fault


def test_an_unknown_size_is_one_line_with_all_known_ones() -> None:
    assert {*get_args(Size)} == {*SIZES, *ALIASES}
    with pytest.raises(UserError) as error:
        validate(Config, {"from": "teacher", "unet": "ssd"}, "compress.small", Path("params.yaml"))
    (line,) = [line for line in str(error.value).splitlines() if "unet" in line]
    assert "compress.small.unet = 'ssd'" in line and all(repr(size) in line for size in SIZES)
