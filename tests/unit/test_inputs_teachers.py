"""Folders of foreign teachers: a published kind draws as its stock pipeline does, or is refused by name."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import diffusers as d
import pytest
import torch
from safetensors.torch import load_file, save_file

from fewstep.backbones.importing import import_teacher
from fewstep.backbones.sd import StableDiffusion
from fewstep.backbones.understood import teacher_faults
from fewstep.config.teacher import ImportTeacherConfig
from fewstep.core.errors import UserError
from tests import pipelines
from tests.foreign import (
    LFS,
    UNET_WEIGHTS,
    Edit,
    assert_draws_as_stock,
    damage,
    imported,
    index,
    net,
    rename,
    scheduler,
    scheduler_class,
    vae,
)
from tests.pipelines import CAPTIONS, backbone_of, make

V_ZERO_SNR = {"prediction_type": "v_prediction", "rescale_betas_zero_snr": True}
Stock = Callable[[str], Path]


@pytest.fixture(autouse=True)
def float32(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "no")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


@pytest.fixture(scope="module")
def originals(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where each family's miniature is made once."""
    return tmp_path_factory.mktemp("stock")


@pytest.fixture
def stock(originals: Path, tmp_path: Path) -> Stock:
    """A copy of a family's miniature, to be changed."""

    def copy(family: str) -> Path:
        if not (originals / family).exists():
            make(family, originals / family)
        return Path(shutil.copytree(originals / family, tmp_path / "stock", dirs_exist_ok=True))

    return copy


SCHEDULER = "scheduler/scheduler_config.json"

REFUSED: list[tuple[str, Edit, list[str]]] = [
    # Schedulers of another kind of model.
    ("sdxl", scheduler_class("EDMDPMSolverMultistepScheduler"), [SCHEDULER, "EDMDPM", "Karras"]),
    ("sd", scheduler_class("EDMEulerScheduler"), [SCHEDULER, "EDMEuler"]),
    ("sd", scheduler_class("LCMScheduler"), [SCHEDULER, "LCMScheduler", "distilled"]),
    ("sd", scheduler_class("TCDScheduler"), [SCHEDULER, "TCDScheduler"]),
    ("sd", scheduler_class("FlowMatchEulerDiscreteScheduler"), [SCHEDULER, "FlowMatchEuler"]),
    ("sd3", scheduler_class("FlowMatchHeunDiscreteScheduler"), [SCHEDULER, "FlowMatchHeun"]),
    ("sd3", scheduler_class("DDIMScheduler"), [SCHEDULER, "DDIMScheduler"]),
    ("sana", scheduler(use_flow_sigmas=False, prediction_type="epsilon"), [SCHEDULER, "use_flow_sigmas"]),
    ("sana", scheduler(use_dynamic_shifting=True), [SCHEDULER, "use_dynamic_shifting"]),
    # Settings of schedulers.
    ("sd", scheduler(prediction_type="velocity"), [SCHEDULER, "prediction_type = 'velocity'", "epsilon"]),
    ("sd", scheduler(beta_schedule="sigmoid"), [SCHEDULER, "beta_schedule = 'sigmoid'", "trained_betas"]),
    ("sd", scheduler(trained_betas=[0.1, 0.2]), [SCHEDULER, "trained_betas", "1000"]),
    ("sd", scheduler(trained_betas=[0.0] * 1000), [SCHEDULER, "trained_betas", "no schedule"]),
    ("sd", scheduler(beta_end="high"), [SCHEDULER, "beta_end = 'high'"]),
    ("sd", scheduler(rescale_betas_zero_snr=True), [SCHEDULER, "rescale_betas_zero_snr", "pure noise"]),
    ("sd", scheduler(predict_epsilon=False), [SCHEDULER, "predict_epsilon", "sample"]),
    ("sd", scheduler(noise_offset_kind="pyramid"), [SCHEDULER, "noise_offset_kind", "remove"]),
    ("sd", scheduler_class("EulerDiscreteScheduler", timestep_type="continuous"), ["timestep_type"]),
    ("sd3", scheduler(invert_sigmas=True), [SCHEDULER, "invert_sigmas"]),
    ("sd3", scheduler(stochastic_sampling=True), [SCHEDULER, "stochastic_sampling"]),
    ("sd3", scheduler(shift_terminal=0.1), [SCHEDULER, "shift_terminal = 0.1"]),
    ("sd3", scheduler(num_train_timesteps=500), [SCHEDULER, "num_train_timesteps = 500"]),
    ("flux", scheduler(shift=-1.0), [SCHEDULER, "shift = -1.0"]),
    # Networks that take more than the adapter feeds.
    ("sd", net(time_cond_proj_dim=256), ["unet/config.json", "time_cond_proj_dim = 256", "guidance"]),
    ("sd", net(in_channels=9), ["unet/config.json", "in_channels = 9", "inpainting"]),
    ("sdxl", net(in_channels=8), ["unet/config.json", "in_channels = 8"]),
    ("flux", net(in_channels=32), ["transformer/config.json", "in_channels = 32", "which is 16"]),
    ("sd", net(class_embed_type="projection"), ["unet/config.json", "class_embed_type"]),
    ("sd", net(num_class_embeds=1000), ["unet/config.json", "num_class_embeds"]),
    ("sd", net(encoder_hid_dim_type="text_proj"), ["unet/config.json", "encoder_hid_dim_type"]),
    ("sd", net(addition_embed_type="text_time"), ["unet/config.json", "addition_embed_type"]),
    ("sdxl", net(addition_embed_type=None), ["unet/config.json", "addition_embed_type = null"]),
    ("sdxl", net(projection_class_embeddings_input_dim=44), ["projection_class_embeddings", "refiner"]),
    ("sd", net(time_embedding_type="fourier"), ["unet/config.json", "time_embedding_type"]),
    ("sd", net(attention_type="gated"), ["unet/config.json", "attention_type"]),
    ("sd", net(a_new_input="depth"), ["unet/config.json", "a_new_input = 'depth'"]),
    ("sd", net(out_channels=8), ["unet/config.json", "out_channels = 8"]),
    ("sd", net(cross_attention_dim=24), ["unet/config.json", "cross_attention_dim = 24", "16"]),
    ("sd", net(sample_size=[8, 16]), ["unet/config.json", "sample_size = [8, 16]"]),
    ("sd3", net(joint_attention_dim=64), ["transformer/config.json", "joint_attention_dim"]),
    ("sana", net(guidance_embeds=True), ["transformer/config.json", "guidance_embeds", "Sprint"]),
    ("pixel", net(class_embed_type="timestep"), ["unet/config.json", "class_embed_type"]),
    ("pixel", net(in_channels=4, out_channels=4), ["unet/config.json", "in_channels = 4"]),
    # Autoencoders.
    (
        "sd",
        index(vae=["diffusers", "AutoencoderTiny"]),
        ["model_index.json", "AutoencoderTiny", "takes AutoencoderKL"],
    ),
    ("sd", index(vae=["diffusers", "AsymmetricAutoencoderKL"]), ["model_index.json", "Asymmetric"]),
    ("sd", vae(_class_name="ConsistencyDecoderVAE"), ["vae/config.json", "ConsistencyDecoderVAE"]),
    ("sdxl", vae(latents_mean=[0.0] * 4), ["vae/config.json", "latents_mean", "Playground"]),
    ("sd", vae(shift_factor=0.1), ["vae/config.json", "shift_factor = 0.1"]),
    ("sd", vae(scaling_factor=None), ["vae/config.json", "scaling_factor = null"]),
    ("sd", vae(latent_channels=16), ["unet/config.json", "in_channels = 4", "latent_channels"]),
    # The index.
    ("sdxl", index(requires_aesthetics_score=True), ["model_index.json", "requires_aesthetics_score"]),
    ("sd", index(text_encoder=["transformers", "XLMRobertaModel"]), ["model_index.json", "XLMRoberta"]),
    ("sd", index(controlnet=["diffusers", "ControlNetModel"]), ["model_index.json", "controlnet"]),
    ("sd", index(vae=[None, None]), ["model_index.json", "vae = [null, null]", "missing"]),
    ("sd", index(vae="AutoencoderKL"), ["model_index.json", "vae"]),
    ("sd", index(_class_name="StableDiffusionInpaintPipeline"), ["is a StableDiffusionInpaintPipeline"]),
    ("sd", damage("model_index.json", b"{"), ["model_index.json", "not readable as JSON"]),
    ("sd", damage("unet/config.json", b"[1]"), ["unet/config.json", "JSON object"]),
    ("sd", damage(SCHEDULER, None), [SCHEDULER, "no such file"]),
    # Weights.
    ("sd", damage(UNET_WEIGHTS, LFS), [UNET_WEIGHTS, "git lfs pull"]),
    ("sd", damage(UNET_WEIGHTS, b"\0" * 9), [UNET_WEIGHTS, "cut short"]),
    ("sd", damage(UNET_WEIGHTS, b""), [UNET_WEIGHTS, "empty"]),
    (
        "sd",
        rename("unet", "diffusion_pytorch_model.safetensors", "diffusion_pytorch_model.fp16.safetensors"),
        ["unet: no weights without a variant", "`import_teacher.variant: fp16`"],
    ),
    (
        "sd",
        rename("unet", "diffusion_pytorch_model.safetensors", "diffusion_pytorch_model.bin"),
        ["unet: has .bin files only", "not opened", "save_pretrained"],
    ),
]


@pytest.mark.parametrize(("family", "edit", "phrases"), REFUSED)
def test_what_is_not_understood_is_refused_by_file_and_key(
    family: str, edit: Edit, phrases: list[str], stock: Stock
) -> None:
    folder = stock(family)
    edit(folder)
    faults = teacher_faults(folder, backbone_of(family), ImportTeacherConfig())
    assert len(faults) == 1 and "\n" not in faults[0]
    assert [part for part in phrases if part not in faults[0]] == []


def test_the_stage_refuses_what_the_check_finds(stock: Stock, tmp_path: Path) -> None:
    folder = stock("sd")
    scheduler(prediction_type="velocity")(folder)
    vae(shift_factor=0.1)(folder)
    faults = teacher_faults(folder, "sd", ImportTeacherConfig())
    assert len(faults) == 2
    with pytest.raises(UserError) as refused:
        import_teacher(str(folder), "sd", ImportTeacherConfig(), tmp_path / "out")
    assert str(refused.value) == "\n".join(faults)


@pytest.mark.parametrize(
    "settings",
    [
        {"use_dynamic_shifting": True, "time_shift_type": "linear"},
        {"use_dynamic_shifting": True, "base_shift": 1.0, "max_shift": 3.0, "base_image_seq_len": 4},
        {"use_karras_sigmas": True},
        {"use_beta_sigmas": True},
    ],
    ids=lambda settings: "-".join(settings),
)
def test_times_of_sd3_are_its_schedulers(settings: dict[str, Any], stock: Stock, tmp_path: Path) -> None:
    folder = stock("sd3")
    scheduler(**settings)(folder)
    backbone, _ = imported(folder, "sd3", tmp_path / "teacher")
    pipeline = d.StableDiffusion3Pipeline.from_pretrained(folder)
    assert_draws_as_stock(backbone, tmp_path / "teacher", pipeline, 4)
    assert backbone.times(4) != pytest.approx([1.0, 0.9, 0.75, 0.5, 0.0], abs=1e-2)  # of shift 3 alone


@pytest.mark.parametrize("how", ["parameter", "index"])
def test_sd3_without_t5_is_the_stock_pipelines(how: str, stock: Stock, tmp_path: Path) -> None:
    folder, options = stock("sd3"), {}
    if how == "index":
        shutil.rmtree(folder / "text_encoder_3")
        shutil.rmtree(folder / "tokenizer_3")
        index(text_encoder_3=[None, None], tokenizer_3=[None, None])(folder)
    else:
        options = {"without": ("text_encoder_3",)}
    backbone, _ = imported(folder, "sd3", tmp_path / "teacher", **options)
    assert not (tmp_path / "teacher/text_encoder_3").exists()
    pipeline = d.StableDiffusion3Pipeline.from_pretrained(folder, text_encoder_3=None, tokenizer_3=None)
    assert_draws_as_stock(backbone, tmp_path / "teacher", pipeline, 3)
    text = backbone.encode_prompts(CAPTIONS)["text"]
    assert text.shape[1] == 12 + 256 and not text[:, 12:].any() and text[:, :12].any()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"without": ("vae",)}, "cannot do without it; it can without: text_encoder_3"),
        ({"prediction": "epsilon"}, "import_teacher.prediction = epsilon"),
        ({"weights": "ema"}, "import_teacher.weights = ema"),
        ({"variant": "fp16"}, "import_teacher.variant = 'fp16': no part has such weights"),
    ],
)
def test_parameters_that_do_not_fit_are_named(options: dict[str, Any], message: str, stock: Stock) -> None:
    (fault,) = teacher_faults(stock("sd3"), "sd3", ImportTeacherConfig(**options))
    assert message in fault


def double_weights(folder: Path) -> None:
    """Of the U-Net: the same under a variant's name, doubled."""
    file = folder / UNET_WEIGHTS
    doubled = {name: 2 * value for name, value in load_file(file).items()}
    save_file(doubled, file.with_suffix(".non_ema.safetensors"))


def test_a_variant_is_taken_of_the_parts_that_have_it(stock: Stock, tmp_path: Path) -> None:
    folder = stock("sd")
    double_weights(folder)
    plain = load_file(folder / UNET_WEIGHTS)["conv_in.weight"]
    for variant, factor in ((None, 1), ("non_ema", 2)):
        backbone, metadata = imported(folder, "sd", tmp_path / str(variant), variant=variant)
        assert metadata["weights"] == variant or (variant is None and metadata["weights"] == "plain")
        assert torch.equal(backbone.net.conv_in.weight, factor * plain)


def test_sharded_half_precision_with_an_index(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.manual_seed(0)
    pipelines.sd().save_pretrained(tmp_path / "stock", max_shard_size="40KB", variant="fp16")
    (fault,) = teacher_faults(tmp_path / "stock", "sd", ImportTeacherConfig())
    assert "unet, vae, text_encoder: no weights without a variant" in fault and "variant: fp16" in fault
    imported(tmp_path / "stock", "sd", tmp_path / "teacher", variant="fp16")
    assert "weights: fp16; prediction: epsilon; proof: one step at 4x8x8" in capsys.readouterr().out
    gone = next((tmp_path / "stock/unet").glob("*00002-of*.safetensors"))
    gone.unlink()
    (fault,) = teacher_faults(tmp_path / "stock", "sd", ImportTeacherConfig(variant="fp16"))
    assert fault.startswith(f"{gone}: is missing")


GOOD: list[tuple[str, Edit]] = [
    ("sd", scheduler_class("EulerDiscreteScheduler", **V_ZERO_SNR)),
    ("sd", scheduler_class("PNDMScheduler", skip_prk_steps=True, steps_offset=1)),
    ("sd", scheduler_class("KDPM2DiscreteScheduler")),
    ("sd", scheduler(trained_betas=[1e-4 + i * 1e-5 for i in range(1000)])),
    ("sd", scheduler(skip_prk_steps=True, sample_max_value=1.0, tensor_format="pt", a_new_switch=False)),
    (
        "sd",
        index(
            safety_checker=["stable_diffusion", "StableDiffusionSafetyChecker"], requires_safety_checker=True
        ),
    ),
    ("sd", index(tokenizer=["transformers", "CLIPTokenizerFast"])),
    ("sd", lambda folder: pipelines.vae().to(torch.bfloat16).save_pretrained(folder / "vae")),
    ("pixart", net(_class_name="Transformer2DModel", num_vector_embeds=None, double_self_attention=False)),
    ("sana", scheduler_class("FlowMatchEulerDiscreteScheduler", shift=3.0)),
]


@pytest.mark.parametrize(("family", "edit"), GOOD)
def test_published_kinds_are_taken(family: str, edit: Edit, stock: Stock, tmp_path: Path) -> None:
    folder = stock(family)
    edit(folder)
    if family == "pixart":
        index(transformer=["diffusers", "Transformer2DModel"])(folder)
    imported(folder, family, tmp_path / "teacher")


def test_the_user_sets_what_a_folder_predicts(stock: Stock, tmp_path: Path) -> None:
    backbone, metadata = imported(stock("sd"), "sd", tmp_path / "teacher", prediction="v_prediction")
    assert metadata["prediction"] == "v_prediction" == backbone.prediction


@pytest.mark.parametrize("zeros", [True, False])
def test_sdxl_zeroes_the_empty_prompt_where_its_pipeline_does(
    zeros: bool, stock: Stock, tmp_path: Path
) -> None:
    folder = stock("sdxl")
    index(force_zeros_for_empty_prompt=zeros)(folder)
    backbone, _ = imported(folder, "sdxl", tmp_path / "teacher")
    pipeline = d.StableDiffusionXLPipeline.from_pretrained(folder)
    _, stock_free, _, stock_pooled = pipeline.encode_prompt(CAPTIONS[0], do_classifier_free_guidance=True)
    free = backbone.unconditional()
    torch.testing.assert_close(free["text"], stock_free)
    torch.testing.assert_close(free["pooled"], stock_pooled)
    assert bool(free["text"].any()) is not zeros


def damaged_unet(change: Callable[[dict[str, torch.Tensor]], object]) -> Edit:
    def run(folder: Path) -> None:
        state = load_file(folder / UNET_WEIGHTS)
        change(state)
        save_file(state, folder / UNET_WEIGHTS)

    return run


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (
            damaged_unet(lambda state: state.pop("conv_out.weight")),
            r"unet: 1 weights .* conv_out.weight first",
        ),
        (
            damaged_unet(lambda state: state.update(guide=torch.ones(1))),
            r"unet: its files have 1 weights .* guide first",
        ),
        (damaged_unet(lambda state: state["conv_out.weight"].fill_(torch.nan)), "the step .* is not finite"),
        (
            damaged_unet(lambda state: state.update({"conv_out.bias": torch.ones(5)})),
            r"unet: cannot be loaded as a UNet2DConditionModel: .*conv_out.bias",
        ),
    ],
    ids=["missing", "further", "nan", "size"],
)
def test_weights_that_are_not_the_networks_are_refused(
    edit: Edit, message: str, stock: Stock, tmp_path: Path
) -> None:
    folder = stock("sd")
    edit(folder)
    with pytest.raises(UserError, match=message):
        import_teacher(str(folder), "sd", ImportTeacherConfig(), tmp_path / "out")


def test_a_teacher_that_draws_otherwise_than_stock_is_refused(
    stock: Stock, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    honest = StableDiffusion.network

    def forgets_the_prompt(self: StableDiffusion, net: torch.nn.Module) -> Any:
        run = honest(self, net)
        return lambda x, time, conditions: run(x, time, {"text": torch.zeros_like(conditions["text"])})

    monkeypatch.setattr(StableDiffusion, "network", forgets_the_prompt)
    with pytest.raises(
        UserError, match=r"stock: one step .* differs from diffusers' StableDiffusionPipeline"
    ):
        import_teacher(str(stock("sd")), "sd", ImportTeacherConfig(), tmp_path / "out")
