"""`fewstep check`: what some stage would refuse after hours is reported before the first one runs."""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml
from diffusers import AutoencoderKL
from tools.imports import ROOT

from fewstep.chain import Chain, load_chain
from fewstep.checks import machine
from fewstep.checks.checklist import check, warnings
from fewstep.checks.plan import plan
from fewstep.core.errors import UserError
from tests.photos import make_photo_folder
from tests.pipelines import make, vae

LORA = {"rank": 4, "alpha": 4.0}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A miniature Stable Diffusion and 30 photographs."""
    folder = tmp_path_factory.mktemp("made")
    make("sd", folder / "stock")
    make_photo_folder(folder / "photos", 30)
    return folder


@pytest.fixture(autouse=True)
def _project(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A working folder with copies of them, on a machine with one process."""
    shutil.copytree(made, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(machine, "processes", lambda: 1)


def changed(values: Mapping[str, Any], dotted: Mapping[str, Any]) -> dict[str, Any]:
    """Parameters with some values replaced."""
    params: dict[str, Any] = json.loads(json.dumps(values))
    for key, value in dotted.items():
        *path, last = key.split(".")
        section = params
        for part in path:
            section = section[part]
        section[last] = value
    return params


def chain_of(dotted: Mapping[str, Any], base: Path = ROOT / "params.yaml") -> Chain:
    Path("params.yaml").write_text(yaml.safe_dump(changed(yaml.safe_load(base.read_text()), dotted)))
    return load_chain()


def of_stable_diffusion(dotted: Mapping[str, Any]) -> Chain:
    """The default chain on the photographs and the miniature, whose features are eight."""
    defaults: dict[str, Any] = {
        "data.source": "folder",
        "data.path": "photos",
        "data.count": None,
        "data.resolution": 64,
        "data.heldout": 0.5,
        "evaluation_set.pictures": 12,
        "judge.train": [],
        "features": "artifacts/models/teacher",
        "teacher": {"backbone": "sd", "train": [], "load": ["stock"], "adopt": []},
    }
    return chain_of({**defaults, **dotted})


def test_what_is_in_order_passes() -> None:
    check(chain_of({}))
    check(of_stable_diffusion({}))


@pytest.mark.parametrize(
    ("dotted", "fault"),
    [
        ({"evaluation_set.pictures": 8}, "evaluation_set.pictures = 8: cannot fill the 8 features"),
        ({"evaluation_set.reference": 8}, "evaluation_set.reference = 8: cannot fill the 8 features"),
        (
            {"data.heldout": 0.2},
            "data.heldout = 0.2: about 6 of 30 images are held out, which cannot fill the 8",
        ),
        ({"data.count": 10}, "data.heldout = 0.5: about 5 of 10 images are held out"),
        ({"data.resolution": 32}, "data.resolution = 32: this teacher draws at 64"),
        ({"sampling.steps": 2000}, "sampling.steps = 2000: this teacher was trained at 1000 times"),
        ({"triplets.steps": 1001}, "triplets.steps = 1001: this teacher was trained at 1000 times"),
        (
            {"evaluate.models.teacher": [1, 1200]},
            "evaluate.models.teacher = 1200: this teacher was trained at",
        ),
        (
            {"students.one_step.lora": {**LORA, "targets": ["to_x"]}},
            "students.one_step.lora.targets: to_x: no layer",
        ),
        (
            {"students.one_step.training.optimizer": "adamw_8bit"},
            "'adamw_8bit': `pip install bitsandbytes` first",
        ),
        ({"export.one_step.steps": 64}, "export.one_step.steps = 64: two of them start beyond"),
        (
            {"reflow.reflow.init": "raw"},
            "export.one_step: no scheduler of diffusers draws with a flow network",
        ),
        ({"evaluate.models": {}, "export": {}}, "evaluate.models is empty"),
        ({"features": "inception-2015-12-05.pt"}, "features = inception-2015-12-05.pt: features need one of"),
        ({"evaluation_set.pictures": 20}, "evaluation_set.pictures = 20: about 15 of 30 images are held out"),
        ({"triplets.prompts": "prompts.txt"}, "triplets.prompts = prompts.txt: no such file"),
        ({"triplets.prompts": "~/prompts.txt"}, "DVC reads this path as it stands"),
        ({"data.path": "~/nowhere"}, "no such file or folder"),
        ({"data.path": "~no-such-user/x"}, "~no-such-user/x: no such user on this machine"),
        ({"inputs": {"mine": "~no-such-user/x"}, "data.path": "mine"}, "~no-such-user/x: no such user"),
        (
            {"inputs": {"unused": "~no-such-user/x"}},
            "inputs.unused = '~no-such-user/x': ~no-such-user/x: no such",
        ),
        ({"teacher.load": ["~no-such-user/x"]}, "~no-such-user/x: no such user on this machine"),
        (
            {"inputs": {"mine": "photos"}, "data.path": "mime"},
            "no such file or folder: mime; inputs names mine",
        ),
        ({"teacher.load": ["./nowhere"]}, "teacher.load = [nowhere]: no diffusers folder"),
        ({"teacher.load": ["photos"]}, "teacher.load = [photos]: no diffusers folder"),
    ],
)
def test_what_a_stage_would_refuse_is_reported_before(dotted: dict[str, Any], fault: str) -> None:
    with pytest.raises(UserError) as caught:
        check(of_stable_diffusion(dotted))
    assert fault in str(caught.value)


@pytest.mark.parametrize(
    ("dotted", "fault"),
    [
        ({"train_judge.feature_dim": 512}, "evaluation_set.pictures = 500: cannot fill the 512 features"),
        ({"data.count": 200}, "about 50 of 200 images are held out, which cannot fill the 64"),
        (
            {"features": "inception-2015-12-05.pt", "students.one_step.perceptual_weight": 1.0},
            "students.one_step: its loss needs feature maps and inception-2015-12-05.pt gives none",
        ),
        ({"export.reflow": {"steps": None}}, "export.reflow: runs at any number of steps"),
        ({"students.one_step.training.batch_size": 1}, "has no sample for each of the 2 processes"),
    ],
)
def test_the_default_chain_is_looked_at_as_well(
    dotted: dict[str, Any], fault: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(machine, "processes", lambda: 2)
    with pytest.raises(UserError) as caught:
        check(chain_of(dotted))
    assert fault in str(caught.value)


def test_every_fault_is_reported_at_once() -> None:
    with pytest.raises(UserError) as caught:
        check(of_stable_diffusion({"evaluation_set.pictures": 4, "data.resolution": 128}))
    assert len(str(caught.value).splitlines()) == 2


def test_a_teacher_that_is_still_to_be_downloaded_is_taken_to_have_published_features() -> None:
    with pytest.raises(UserError, match=r"evaluation_set\.pictures = 12: cannot fill the 512 features"):
        check(of_stable_diffusion({"teacher.load": ["stable-diffusion-v1-5/stable-diffusion-v1-5"]}))


def test_a_name_of_inputs_stands_for_its_place(tmp_path: Path) -> None:
    elsewhere = {"inputs": {"mine": str(tmp_path / "photos"), "model": str(tmp_path / "stock")}}
    chain = of_stable_diffusion({**elsewhere, "data.path": "mine", "teacher.load": ["model"]})
    check(chain)
    assert (chain.data.path, chain.teacher.load) == (str(tmp_path / "photos"), (str(tmp_path / "stock"),))


def test_the_home_folder_is_what_stages_open(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    chain = of_stable_diffusion({"data.path": "~/photos", "teacher.load": ["~/stock"]})
    check(chain)
    assert chain.data.path == str(tmp_path / "photos")


DMD2 = {
    "method": "dmd2",
    "from": "teacher",
    "training": {"steps": 10, "batch_size": 64, "learning_rate": 1e-5},
    "fake": {"learning_rate": 1.0},
}


@pytest.mark.parametrize(
    ("dotted", "warning"),
    [
        ({}, "reflow.reflow.training.optimizer = muon: pretrained models are published with AdamW"),
        ({}, "reflow.reflow.training.learning_rate = 0.002: published for a pretrained whole network"),
        (
            {"reflow.reflow.lora": LORA, "reflow.reflow.training.learning_rate": 0.01},
            "reflow.reflow.training.learning_rate = 0.01: published for a pretrained adapter",
        ),
        (
            {"reflow.reflow.training.batch_size": 4},
            "reflow.reflow.training.batch_size = 4: published for a pretrained whole network are 10 to 6000",
        ),
        (
            {"students.fast": DMD2},
            "students.fast.fake.learning_rate = 1: published for a pretrained whole network",
        ),
        ({"halve.2.steps": 3}, "halve.2.steps = 3: halve-4 was made for 4 steps, and is asked for 6"),
    ],
)
def test_settings_that_spoil_a_pretrained_model_are_warned_of(dotted: dict[str, Any], warning: str) -> None:
    assert any(warning in message for message in warnings(of_stable_diffusion(dotted)))


def test_a_place_of_this_machine_is_better_named(tmp_path: Path) -> None:
    plain = warnings(of_stable_diffusion({"data.path": str(tmp_path / "photos")}))
    assert any("dvc.lock will hold this path; name it in `inputs`" in warning for warning in plain)
    named = {"inputs": {"mine": str(tmp_path / "photos")}, "data.path": "mine"}
    assert not any("dvc.lock" in warning for warning in warnings(of_stable_diffusion(named)))


def test_steps_that_the_stock_pixel_pipeline_does_not_take_are_refused() -> None:
    make("pixel", Path("pixels"))
    dotted = {
        "teacher": {"backbone": "pixel", "train": [], "load": ["pixels"], "adopt": []},
        "features": "x.pt",
    }
    with pytest.raises(UserError, match=r"export\.halve-4: the stock DDIMPipeline knows no classes"):
        check(of_stable_diffusion({**dotted, "data.resolution": 16, "export": {"halve-4": {"steps": 4}}}))


def test_a_model_of_the_chains_own_may_be_trained_as_it_likes() -> None:
    assert warnings(chain_of({})) == []


def test_captions_that_are_nowhere_are_warned_of() -> None:
    chain = of_stable_diffusion({})
    for caption in Path("photos").glob("*.txt"):
        caption.unlink()
    assert any("is an image with a caption" in warning for warning in warnings(chain))


def test_the_plan_counts_a_foreign_teachers_weights_and_latents() -> None:
    chain = of_stable_diffusion({})
    disk = {stage.name: stage.disk for stage in plan(chain)}
    stock = make("sd", Path("again"))
    weights, others = (
        sum(p.numel() for net in nets for p in net.parameters())
        for nets in ([stock.unet], [stock.vae, stock.text_encoder])
    )
    assert disk["reflow"] == 4 * weights
    assert disk["import_teacher"] == 4 * (weights + others)
    smaller = of_stable_diffusion({"import_teacher.dtype": "float16", "export": {"reflow": {"steps": 4}}})
    disk = {stage.name: stage.disk for stage in plan(smaller)}
    assert disk["import_teacher"] == 2 * (weights + others)
    assert disk["export@reflow"] == 4 * (2 * weights + others)
    latent, prompt = 4 * 8 * 8, 77 * 16
    assert disk["generate_triplets@0"] == chain.triplets.count * (latent + prompt) * 4
    assert next(stage.samples for stage in plan(chain) if stage.name == "prepare_data") == 30


def test_the_plan_counts_adapters_where_they_are_stored_alone() -> None:
    """reflow and halve-4 are adapters since the teacher; halve-2 is trained whole, and one_step after it."""
    second = {"rank": 2, "alpha": 1.0, "targets": ["to_q"]}
    chain = of_stable_diffusion(
        {
            "reflow.reflow.lora": LORA,
            "halve.4.lora": second,
            "halve.2.dtype": "bfloat16",
            "students.one_step.lora": second,
        }
    )
    disk = {stage.name: stage.disk for stage in plan(chain)}
    net = make("sd", Path("again")).unet
    whole = sum(weight.numel() for weight in net.parameters())

    def adapter(rank: int, *targets: str) -> int:
        layers = [layer for name, layer in net.named_modules() if name.endswith(targets)]
        return rank * sum(sum(layer.weight.shape) for layer in layers)

    first, small = adapter(4, "to_q", "to_k", "to_v", "to_out.0"), adapter(2, "to_q")
    assert 0 < small < first < whole / 4
    assert disk["reflow"] == 4 * first
    assert disk["halve-4"] == 4 * (first + small)
    assert disk["halve-2"] == 2 * whole
    assert disk["one_step"] == 4 * (whole + small)
    others = disk["import_teacher"] - 4 * whole
    assert disk["export@one_step"] == 8 * (whole + small) + others


def test_a_vae_of_other_widths_has_other_features() -> None:
    chain = of_stable_diffusion({"evaluation_set.pictures": 10})
    check(chain)
    wide: AutoencoderKL = vae()
    wide.register_to_config(block_out_channels=(8, 8, 8, 16))
    wide.save_config("stock/vae")
    with pytest.raises(UserError, match="cannot fill the 16 features"):
        check(chain)


TRACKED = [f"triplets.{key}" for key in ("time_power", "guidance", "dtype", "steps", "shard_size")]


@pytest.mark.parametrize("key", TRACKED)
def test_a_key_that_dvc_tracks_is_missed_before_dvc_does(key: str) -> None:
    """Also those with a default of ours, without which `dvc repro` would end at the first such stage."""
    shutil.copy(ROOT / "dvc.yaml", "dvc.yaml")
    values = yaml.safe_load((ROOT / "params.yaml").read_text())
    section, entry = key.split(".")
    del values[section][entry]
    Path("params.yaml").write_text(yaml.safe_dump(values))
    with pytest.raises(UserError, match=rf"params\.yaml: {key}: is missing"):
        check(load_chain())


@pytest.mark.parametrize(
    ("dotted", "line"),
    [
        (
            {"reflow.reflow.data": "encoded"},
            "params.yaml: reflow.reflow.data = 'encoded': this method learns from triplets alone",
        ),
    ],
)
def test_a_fault_between_keys_shows_no_whole_section(dotted: dict[str, Any], line: str) -> None:
    with pytest.raises(UserError) as raised:
        chain_of(dotted)
    assert str(raised.value) == line


def test_the_plan_encodes_each_splits_own_images() -> None:
    chain = chain_of({"encode_data": {"train": {}, "heldout": {}}, "data.count": 1000, "data.heldout": 0.25})
    planned = {stage.name: stage.samples for stage in plan(chain)}
    assert (planned["encode_data@train"], planned["encode_data@heldout"]) == (750, 250)
