"""A decoder of the user's in the place of a trained one: what fits is taken as it is, the rest is refused."""

import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from shutil import copytree
from typing import Any

import pytest
import torch
import yaml
from diffusers import AutoencoderTiny, DiffusionPipeline
from dvc.repo import Repo  # type: ignore[import-untyped]
from safetensors.torch import load_file, save_file
from tools.imports import ROOT

from fewstep.backbones.model import open_model
from fewstep.chain import Chain
from fewstep.checks import inputs, recipe, settings
from fewstep.checks.plan import plan, trainings
from fewstep.config.sampling import SamplingConfig
from fewstep.core.errors import UserError
from fewstep.core.keyed import Key
from fewstep.core.paths import MODELS, TEACHER, TRIPLETS
from fewstep.export.pipeline import export
from fewstep.methods import decoder
from fewstep.methods.decoder import tiny_autoencoder, tiny_geometry
from fewstep.sampling.draw import DECODER, Sampler
from fewstep.students.decoder import add_decoder, decoder_faults
from fewstep.students.learn import Task, learn
from tests.began import BEGAN_IN, PYTHON
from tests.miniature import draw_triplets, import_miniature, prepare_images
from tests.pipelines import make
from tests.unit.test_compress_checks import chain_of
from tests.unit.test_every_method import config
from tests.unit.test_every_method import project as project

FOLDER = Path("taesd")
LOADED = {"from": "one_step", "data": "inputs", "load": str(FOLDER)}
TRAINING = {"steps": 2, "batch_size": 16, "learning_rate": 1.0e-4}


def saved(tiny: Any = None, **changes: Any) -> Path:
    """A folder of diffusers with this decoder; changes: to its configuration, not to its weights."""
    torch.manual_seed(0)
    (tiny or tiny_geometry(4, 8, 8)).save_pretrained(FOLDER)
    file = FOLDER / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))
    return FOLDER


@pytest.mark.parametrize("family", ["sd", "sdxl", "pixart", "sd3", "flux", "sana"])
def test_it_becomes_the_models_decoder(family: str) -> None:
    backbone = import_miniature(family)
    tiny, _ = tiny_autoencoder(backbone, 8, Key(0, "test"))
    add_decoder("taesd", "teacher", saved(tiny))
    model = open_model(MODELS / "taesd", backbone)
    opened: Any = model.parts[DECODER]
    assert isinstance(opened, AutoencoderTiny)
    assert all(torch.equal(value, tiny.state_dict()[name]) for name, value in opened.state_dict().items())
    start = backbone.net.state_dict()
    assert all(torch.equal(value, start[name]) for name, value in model.net.state_dict().items())
    if family != "flux":  # whose latents are packed
        latents = torch.randn(2, *backbone.latent_shape)
        with torch.no_grad():
            expected = tiny.decode(latents).sample
        drawn = Sampler(model, backbone, SamplingConfig()).decode(latents)
        torch.testing.assert_close(drawn, expected)


def test_a_decoder_of_unscaled_latents_receives_them() -> None:
    backbone: Any = import_miniature("sd3")
    scale, shift = backbone.vae.config.scaling_factor, backbone.vae.config.shift_factor
    assert scale != 1 and shift != 0
    add_decoder("taesd", "teacher", saved(tiny_geometry(16, 8, 8), scaling_factor=scale, shift_factor=shift))
    model = open_model(MODELS / "taesd", backbone)
    latents = torch.randn(1, *backbone.latent_shape)
    with torch.no_grad():
        expected = AutoencoderTiny.from_pretrained(FOLDER).decode(latents / scale + shift).sample
    torch.testing.assert_close(Sampler(model, backbone, SamplingConfig()).decode(latents), expected)


def not_finite() -> Path:
    file = saved() / "diffusion_pytorch_model.safetensors"
    save_file({name: value * torch.nan for name, value in load_file(file).items()}, file)
    return FOLDER


def damaged() -> Path:
    (saved() / "config.json").write_text("{")
    return FOLDER


def of_other_weights() -> Path:
    narrow = saved(tiny_geometry(4, 8, 4)) / "diffusion_pytorch_model.safetensors"
    weights = load_file(narrow)
    save_file(weights, saved() / narrow.name)
    return FOLDER


@pytest.mark.parametrize(
    ("make_it", "message"),
    [
        (
            lambda: saved(tiny_geometry(16, 8, 8)),
            r"^taesd/config.json: latent_channels = 16: the teacher's latents have 4$",
        ),
        (
            lambda: saved(tiny_geometry(4, 4, 8)),
            r"^taesd/config.json: num_decoder_blocks = \[3, 3, 1\]: enlarges latents 4 times, the teacher's "
            r"autoencoder 8 times$",
        ),
        (
            lambda: saved(scaling_factor=0.5),
            r"^taesd/config.json: scaling_factor, shift_factor = \[0.5, 0.0\]: expected \[1.0, 0.0\], for "
            r"latents as the denoiser has them, or the teacher's \[0.18215, 0.0\]$",
        ),
        (lambda: saved(shift_factor=0.1), r"^taesd/config.json: .* = \[1.0, 0.1\]: expected \[1.0, 0.0\]"),
        (lambda: saved(_class_name="AutoencoderKL"), r"_class_name = 'AutoencoderKL': expected Autoenc"),
        (
            lambda: Path("nowhere"),
            r"^nowhere/config.json: no such file; expected a folder of",
        ),
        (damaged, r"^taesd/config.json: not readable as JSON"),
        (of_other_weights, r"^taesd: cannot be loaded as AutoencoderTiny"),
        (not_finite, r"^taesd: decodes to values that are not finite; its weights are damaged$"),
    ],
)
def test_what_does_not_fit_is_refused(make_it: Callable[[], Path], message: str) -> None:
    import_miniature("sd")
    with pytest.raises(UserError, match=message):
        add_decoder("taesd", "teacher", make_it())
    assert not (MODELS / "taesd").exists()


def test_a_family_without_an_autoencoder_says_so() -> None:
    import_miniature("pixel")
    with pytest.raises(UserError, match="load: this teacher has no autoencoder"):
        add_decoder("taesd", "teacher", saved())


def test_what_is_unknown_of_the_teacher_is_not_compared() -> None:
    folder = saved(tiny_geometry(16, 4, 8), scaling_factor=0.5)
    assert list(decoder_faults(folder, {})) == []
    (fault,) = decoder_faults(folder, {"latent_channels": 4, "block_out_channels": [8, 8, 8]})
    assert "latent_channels = 16" in fault


def test_an_exported_pipeline_has_it() -> None:
    prepare_images()
    backbone = import_miniature("sd")
    draw_triplets(backbone)
    learn(Task("distill", "student", "direct", config("direct"), [TRIPLETS / "0"], 0))
    add_decoder("taesd", "student", saved())
    model = open_model(MODELS / "taesd", backbone)
    assert model.steps == 1
    export(Path("out"), model, MODELS / "taesd", TEACHER, backbone)
    weights = DiffusionPipeline.from_pretrained("out").vae.state_dict()
    own = AutoencoderTiny.from_pretrained(FOLDER).state_dict()
    assert all(torch.equal(value, weights[name]) for name, value in own.items())


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"load": "taesd"}, "load: nothing is trained, so set data: inputs"),
        ({"load": "taesd", "data": "triplets"}, "load: nothing is trained, so set data: inputs"),
        (
            {"load": "taesd", "data": "inputs", "training": TRAINING, "width": 8},
            "load: nothing is trained, so remove training, width",
        ),
        ({"data": "inputs", "training": TRAINING}, "data = 'inputs': for a decoder that is not trained"),
        ({"data": "triplets"}, "training is missing; without it, set data: inputs and load"),
    ],
)
def test_it_is_either_trained_or_loaded(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        decoder.Config.model_validate({"from": "teacher"} | values)


def of_a_teacher(dotted: dict[str, Any]) -> Chain:
    """The default chain with a miniature Stable Diffusion as its teacher."""
    make("sd", Path("stock"))
    teacher = {"backbone": "sd", "train": [], "load": ["stock"], "adopt": []}
    return chain_of({"teacher": teacher, "data.resolution": 64} | dotted)


def test_check_reports_what_does_not_fit_before_anything_runs() -> None:
    saved(tiny_geometry(16, 8, 8))
    chain = of_a_teacher({"decoder.fast": LOADED, "inputs": {"mine": str(FOLDER)}})
    wanted = "params.yaml: decoder.fast.load: taesd/config.json: latent_channels = 16: the teacher's"
    assert [fault for fault in inputs.faults(chain) if fault.startswith(wanted)]
    saved()
    named = of_a_teacher(
        {"inputs": {"mine": str(FOLDER.resolve())}, "decoder.fast": LOADED | {"load": "mine"}}
    )
    assert named.decoder["fast"].load == str(FOLDER.resolve())
    assert not [*inputs.faults(named)] and not [each for each in inputs.warnings(named) if "decoder" in each]
    plain = of_a_teacher({"decoder.fast": LOADED | {"load": str(FOLDER.resolve())}})
    (warning,) = [each for each in inputs.warnings(plain) if each.startswith("decoder")]
    assert warning.startswith(f"decoder.fast.load = {FOLDER.resolve()}: dvc.lock will hold this path")


def test_check_counts_no_training() -> None:
    saved()
    chain = of_a_teacher({"decoder.fast": LOADED, "evaluate.models.fast": [1]})
    stages = {stage.name: stage for stage in plan(chain)}
    assert (stages["fast"].steps, stages["fast"].samples) == (None, None)
    assert stages["fast"].disk == stages["one_step"].disk
    assert "decoder.fast" not in chain.trainings() and "fast" not in trainings(chain)
    assert not [fault for fault in settings.faults(chain) if "decoder" in fault]
    assert not [warning for warning in recipe.warnings(chain) if "decoder" in warning]


def record() -> str:
    """What the stage `watch_inputs` writes for the decoders."""
    environment = BEGAN_IN | {"PYTHONPATH": str(ROOT / "src")}
    subprocess.run([PYTHON, ROOT / "stages/watch_inputs.py"], env=environment, check=True)
    return Path("artifacts/inputs/decoder.json").read_text()


def test_its_content_is_watched_but_not_its_place() -> None:
    saved()
    chain_of({"inputs": {"mine": str(FOLDER)}, "decoder.fast": LOADED | {"load": "mine"}})
    before = record()
    copytree(FOLDER, "elsewhere")
    chain_of({"inputs": {"mine": "elsewhere"}, "decoder.fast": LOADED | {"load": "mine"}})
    assert record() == before
    Path("elsewhere/config.json").write_text("{}")
    assert record() != before


def test_dvc_runs_it_again_after_a_change_of_inputs_and_trained_ones_not(tmp_path: Path) -> None:
    fast = {"from": "one_step", "data": "triplets", "training": TRAINING}
    values = yaml.safe_load((ROOT / "params.yaml").read_text())
    values["decoder"] = {"taesd": LOADED, "fast": fast}
    Path("params.yaml").write_text(yaml.safe_dump(values))
    for name in ("dvc.yaml", "src", "stages"):
        Path(name).symlink_to(ROOT / name)
    Repo.init(no_scm=True)
    with Repo() as repo:
        starts = {
            stage.name: {above.name for above in repo.index.graph.successors(stage)}
            for stage in repo.index.graph
        }
    assert {"watch_inputs", "distill@one_step"} <= starts["decoder@taesd"]
    assert "watch_inputs" not in starts["decoder@fast"]
