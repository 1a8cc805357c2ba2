"""Single-file teachers: their metadata set prediction and schedule; other files are refused by name."""

from collections.abc import Callable
from pathlib import Path

import diffusers as d
import pytest
import torch
from safetensors.torch import load_file

from fewstep.backbones.importing import import_teacher
from fewstep.backbones.understood import teacher_faults
from fewstep.config.teacher import ImportTeacherConfig
from fewstep.core.errors import UserError
from tests import pipelines
from tests.checkpoints import averages, mark, parts_of, write
from tests.foreign import LFS, UNET_WEIGHTS, assert_draws_as_stock, imported
from tests.pipelines import make


@pytest.fixture(autouse=True)
def float32(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "no")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


Parts = tuple[dict[str, torch.Tensor], ...]


@pytest.fixture(scope="module")
def stock(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder, whose weights the files hold."""
    folder = tmp_path_factory.mktemp("stock")
    make("sd", folder)
    return folder


@pytest.fixture(scope="module")
def whole(stock: Path) -> Parts:
    """Weights of the denoiser, autoencoder and text encoder by the names of the original code."""
    return parts_of(d.StableDiffusionPipeline.from_pretrained(stock))


def renamed(state: dict[str, torch.Tensor], old: str, new: str) -> dict[str, torch.Tensor]:
    return {name.replace(old, new, 1): value for name, value in state.items()}


Make = Callable[[Path, Parts], object]
ONE = torch.ones(1)


def with_metadata(*names: str, **metadata: str) -> Make:
    """A whole checkpoint with such keys and metadata."""
    modelspec = {f"modelspec.{key}": value for key, value in metadata.items()}
    return lambda file, parts: write(file, *parts, mark(*names), metadata=modelspec)


NOT_WHOLE: list[tuple[str, Make, list[str]]] = [
    ("no text", lambda f, p: write(f, p[0], p[1]), ["has no text_encoder", "load a whole checkpoint"]),
    ("no autoencoder", lambda f, p: write(f, p[0], p[2]), ["has no vae", "load a whole checkpoint"]),
    ("denoiser", lambda f, p: write(f, p[0]), ["is a denoiser alone (vae, text_encoder are missing)"]),
    (
        "denoiser, bare names",
        lambda f, p: write(f, renamed(p[0], "model.diffusion_model.", "")),
        ["is a denoiser alone"],
    ),
    (
        "denoiser, diffusers' names",
        lambda f, p: write(f, pipelines.unet(16).state_dict()),
        ["is a denoiser alone"],
    ),
    (
        "adapter",
        lambda f, p: write(f, {"lora_unet_mid.lora_up.weight": ONE}),
        ["is a low-rank adapter (LoRA)"],
    ),
    ("adapter, diffusers", lambda f, p: write(f, {"unet.mid.lora_A.weight": ONE}), ["low-rank adapter"]),
    ("ControlNet", lambda f, p: write(f, {"control_model.time_embed.0.weight": ONE}), ["is a ControlNet"]),
    ("autoencoder", lambda f, p: write(f, {"encoder.conv_in.weight": ONE}), ["is an autoencoder"]),
    ("nothing known", lambda f, p: write(f, {"a": ONE}), ["no checkpoint that is known here"]),
    (
        "other family",
        lambda f, p: write(f, p[0], p[1], {"conditioner.embedders.0.a": ONE}),
        ["another family", "teacher.backbone: sdxl"],
    ),
    (
        "inpainting",
        lambda f, p: write(f, *p, {"model.diffusion_model.input_blocks.0.0.weight": torch.ones(8, 9, 3, 3)}),
        ["9 input channels", "inpainting"],
    ),
    ("EDM", with_metadata("edm_mean", "edm_std"), ["edm_mean", "Karras"]),
    ("zero SNR of epsilon", with_metadata("ztsnr", prediction_type="epsilon"), ["ztsnr", "pure noise"]),
    (
        "contradiction",
        with_metadata("v_pred", prediction_type="epsilon"),
        ["contradicts itself", "import_teacher.prediction"],
    ),
    ("unknown prediction", with_metadata(prediction_type="flow"), ["modelspec.prediction_type = 'flow'"]),
    (
        "architecture of a LoRA",
        with_metadata(architecture="stable-diffusion-v1/lora"),
        ["modelspec.architecture", "v1/lora"],
    ),
    (
        "architecture of another family",
        with_metadata(architecture="stable-diffusion-xl-v1-base"),
        ["teacher.backbone: sdxl"],
    ),
    ("pointer", lambda f, p: f.write_bytes(LFS), ["git lfs pull"]),
    ("page", lambda f, p: f.write_text("<!doctype html><html>404</html>"), ["web page"]),
    ("empty", lambda f, p: f.write_bytes(b""), ["is empty"]),
    ("cut header", lambda f, p: f.write_bytes(write(f, *p).read_bytes()[:2000]), ["cut short"]),
    ("cut", lambda f, p: f.write_bytes(write(f, *p).read_bytes()[:-9]), ["cut short"]),
    ("folder", lambda f, p: f.mkdir(), ["model_index.json", "no such file"]),
]


@pytest.mark.parametrize(
    ("make_file", "phrases"), [row[1:] for row in NOT_WHOLE], ids=[row[0] for row in NOT_WHOLE]
)
def test_a_single_file_that_is_no_teacher_is_refused_by_what_it_is(
    make_file: Make, phrases: list[str], whole: Parts, stock: Path, tmp_path: Path
) -> None:
    file, config = tmp_path / "x.safetensors", ImportTeacherConfig(config=str(stock))
    make_file(file, whole)
    (fault,) = teacher_faults(file, "sd", config)
    assert fault.startswith(str(file)) and "\n" not in fault
    assert [part for part in phrases if part not in fault] == []
    with pytest.raises(UserError):
        import_teacher(str(file), "sd", config, tmp_path / "out")


@pytest.mark.parametrize("suffix", [".ckpt", ".pt", ".gguf", ".bin", ".zip"])
def test_files_that_may_run_code_or_are_quantized_are_not_opened(suffix: str, tmp_path: Path) -> None:
    file = tmp_path / f"x{suffix}"
    file.write_bytes(b"\x80\x02")
    (fault,) = teacher_faults(file, "sd", ImportTeacherConfig())
    assert fault.startswith(str(file)) and ".safetensors" in fault


@pytest.mark.parametrize(
    ("marks", "metadata", "prediction", "last"),
    [
        ((), {}, "epsilon", 0.0047),
        (("v_pred",), {}, "v_prediction", 0.0047),
        (("v_pred", "ztsnr"), {}, "v_prediction", 0.0),
        ((), {"modelspec.prediction_type": "v"}, "v_prediction", 0.0047),
        ((), {"modelspec.prediction_type": "epsilon"}, "epsilon", 0.0047),
    ],
)
def test_the_metadata_of_a_single_file_set_prediction_and_schedule(
    marks: tuple[str, ...],
    metadata: dict[str, str],
    prediction: str,
    last: float,
    whole: Parts,
    stock: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    file = write(tmp_path / "x.safetensors", *whole, mark(*marks), metadata=metadata)
    config = {"config": str(stock)}
    backbone, imported_metadata = imported(file, "sd", tmp_path / "teacher", **config)
    assert imported_metadata["prediction"] == prediction and imported_metadata["weights"] == "plain"
    assert backbone.schedule.alpha_sigma(ONE)[0].square().item() == pytest.approx(last, abs=1e-4)
    output = capsys.readouterr().out
    assert all(name in output for name in (*marks, *metadata, f"prediction: {prediction}"))
    pipeline = d.StableDiffusionPipeline.from_pretrained(stock)
    pipeline.scheduler = d.DDIMScheduler.from_config(
        pipeline.scheduler.config,
        prediction_type=prediction,
        rescale_betas_zero_snr="ztsnr" in marks,
        timestep_spacing="trailing",
        set_alpha_to_one=True,
    )
    assert_draws_as_stock(backbone, tmp_path / "teacher", pipeline, 5)


def test_the_users_settings_go_before_the_marks(whole: Parts, stock: Path, tmp_path: Path) -> None:
    file = write(tmp_path / "x.safetensors", *whole, metadata={"modelspec.prediction_type": "epsilon"})
    options = {"config": str(stock), "prediction": "v_prediction"}
    assert imported(file, "sd", tmp_path / "teacher", **options)[1]["prediction"] == "v_prediction"


@pytest.mark.parametrize(("weights", "factor"), [("plain", 1.0), ("ema", 0.5)])
def test_trained_or_averaged_weights_are_chosen(
    weights: str, factor: float, whole: Parts, stock: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = write(tmp_path / "x.safetensors", *whole, averages(whole[0], 0.5))
    options = {"config": str(stock), "weights": weights}
    backbone, metadata = imported(file, "sd", tmp_path / "teacher", **options)
    stored = load_file(stock / UNET_WEIGHTS)
    state = backbone.net.state_dict()
    assert all(torch.equal(state[name], factor * value) for name, value in stored.items())
    assert metadata["weights"] == weights and f"weights: {weights}" in capsys.readouterr().out


def test_averages_that_are_not_there_are_refused(whole: Parts, stock: Path, tmp_path: Path) -> None:
    file = write(tmp_path / "x.safetensors", *whole)
    (fault,) = teacher_faults(file, "sd", ImportTeacherConfig(weights="ema"))
    assert "import_teacher.weights = ema: the file has no model_ema.* weights" in fault


def test_a_whole_file_of_eight_bits_is_taken(whole: Parts, stock: Path, tmp_path: Path) -> None:
    eight = {name: w.to(torch.float8_e4m3fn) if w.ndim > 1 else w for name, w in whole[0].items()}
    file = write(tmp_path / "x.safetensors", eight, *whole[1:])
    imported(file, "sd", tmp_path / "teacher", config=str(stock))


def test_a_file_with_a_hole_is_refused_by_the_missing_weight(
    whole: Parts, stock: Path, tmp_path: Path
) -> None:
    holed = {name: value for name, value in whole[0].items() if not name.endswith("out.2.bias")}
    file = write(tmp_path / "x.safetensors", holed, *whole[1:])
    with pytest.raises(UserError, match=r"x.safetensors: .* some of its weights are missing"):
        import_teacher(str(file), "sd", ImportTeacherConfig(config=str(stock)), tmp_path / "out")


def test_a_single_file_without_network_is_refused_with_the_remedy(
    whole: Parts, stock: Path, tmp_path: Path
) -> None:
    file = write(tmp_path / "x.safetensors", *whole)
    with pytest.raises(UserError, match=r"x.safetensors: cannot be loaded as a StableDiffusionPipeline"):
        import_teacher(str(file), "sd", ImportTeacherConfig(local_files_only=True), tmp_path / "out")
