"""Single-file checkpoints: the parts they hold, and their metadata."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

from fewstep.backbones.pipeline import DiffusersBackbone
from fewstep.backbones.weight_files import Header, read_header
from fewstep.config.teacher import ImportTeacherConfig
from fewstep.core.errors import UserError
from fewstep.diffusion.denoiser import Prediction

EMA = "model_ema."
NOT_HERE = "which is not implemented"
FIRST_LAYER = "model.diffusion_model.input_blocks.0.0.weight"
WHOLE = "load a whole checkpoint, or a diffusers folder with every part"
ALONE = "a denoiser alone"
KINDS = (
    ("a low-rank adapter (LoRA)", ("lora_", ".lora_A.", ".lora_B.", ".lora_down.", ".hada_", ".lokr_")),
    ("a ControlNet", ("control_model.", "controlnet_", "zero_convs.")),
    ("a text encoder", ("text_model.", "encoder.block.0.layer.", "model.layers.0.self_attn.")),
    ("an autoencoder", ("encoder.conv_in.", "decoder.conv_in.", "encoder.down.", "encoder.project_in.")),
    (ALONE, ("input_blocks.", "down_blocks.", "double_blocks.", "joint_blocks.")),
    (ALONE, ("transformer_blocks.", "blocks.", "model.diffusion_model.", "unet.")),
    ("a textual inversion", ("emb_params", "string_to_param", "clip_l", "clip_g")),
)
"""Kind of file -> beginnings of its tensors' names, or (with a dot) substrings; the first match counts."""
FAMILIES = {
    "sd": ("cond_stage_model.",),
    "sdxl": ("conditioner.",),
    "sd3": ("model.diffusion_model.joint_blocks.",),
    "flux": ("model.diffusion_model.double_blocks.",),
}
"""teacher.backbone -> tensor name prefixes that only its full checkpoints have."""
ARCHITECTURES = {
    "stable-diffusion-v1": "sd",
    "stable-diffusion-v2": "sd",
    "stable-diffusion-xl-v1-base": "sdxl",
    "stable-diffusion-3": "sd3",
    "stable-diffusion-3.5": "sd3",
    "stable-diffusion-v3": "sd3",
    "flux": "flux",
    "flux-1": "flux",
    "flux.1": "flux",
}
"""Prefix of `modelspec.architecture` -> teacher.backbone; the longest match counts."""
PREDICTIONS = {
    "epsilon": Prediction.EPSILON,
    "eps": Prediction.EPSILON,
    "v": Prediction.V,
    "v_prediction": Prediction.V,
    "v-prediction": Prediction.V,
    "vpred": Prediction.V,
    "v_pred": Prediction.V,
    "sample": Prediction.SAMPLE,
}


class Marks(NamedTuple):
    """How a file's model was trained. source: where that is stated, for messages.

    prediction: None if it is not stated. zero_snr: whether the schedule has zero terminal SNR. averages:
    whether the file also holds an EMA of the denoiser's weights.
    """

    prediction: Prediction | None = None
    zero_snr: bool = False
    source: str = ""
    averages: bool = False


def marks_of(header: Header, prediction: str | None = None) -> Marks:
    """How the file's model was trained; prediction: the user's prediction type, which takes precedence.

    Raises UserError if the file's statements contradict each other or name an unknown prediction type.
    """
    zero = "ztsnr" in header.shapes or header.metadata.get("ss_zero_terminal_snr", "").lower() == "true"
    noted, averages = ["ztsnr"] if zero else [], bool(ema_names(list(header.shapes)))
    if prediction:
        return Marks(Prediction(prediction), zero, ", ".join(["import_teacher.prediction", *noted]), averages)
    statements: dict[str, Prediction] = {}
    if "v_pred" in header.shapes:
        statements["key v_pred"] = Prediction.V
    for key in ("modelspec.prediction_type", "modelspec.predict_type"):
        if (value := header.metadata.get(key, "").strip().lower()) not in ("", "none"):
            if value not in PREDICTIONS:
                raise UserError(f"metadata {key} = {value!r}: no prediction that is known here")
            statements[f"metadata {key}"] = PREDICTIONS[value]
    if header.metadata.get("modelspec.architecture", "").endswith("-768-v"):
        statements["metadata modelspec.architecture"] = Prediction.V
    if header.metadata.get("ss_v_parameterization", "").lower() == "true":
        statements["metadata ss_v_parameterization"] = Prediction.V
    if len(set(statements.values())) > 1:
        each = ", ".join(f"{where} says {what}" for where, what in statements.items())
        raise UserError(f"contradicts itself: {each}; say which with import_teacher.prediction")
    return Marks(next(iter(statements.values()), None), zero, ", ".join([*statements, *noted]), averages)


def single_file_faults(
    file: Path, adapter: type[DiffusersBackbone], config: ImportTeacherConfig
) -> Iterator[str]:
    """Why a single file cannot be imported; decided from the names, shapes and metadata in its header."""
    if not adapter.single_file_parts:
        yield f"{file}: a {adapter.pipeline_class} is read from a diffusers folder, not from a single file"
        return
    try:
        header = read_header(file)
    except UserError as error:
        yield str(error)
        return
    yield from (f"{file}: {why}" for why in header_faults(header, adapter, config))


def header_faults(
    header: Header, adapter: type[DiffusersBackbone], config: ImportTeacherConfig
) -> Iterator[str]:
    """Why a file with this header cannot be a teacher of the family."""
    names, family = list(header.shapes), adapter.__module__.rpartition(".")[2]
    if edm := [name for name in names if name.startswith("edm_")]:
        yield f"key {edm[0]}: its network takes time and input scaled as in Karras et al. 2022, {NOT_HERE}"
        return
    architecture = header.metadata.get("modelspec.architecture", "").strip().lower()
    base, _, use = architecture.partition("/")
    known = [name for name in ARCHITECTURES if base.startswith(name)]
    if use or "inpaint" in base:
        yield f"metadata modelspec.architecture = {architecture!r}: is no whole text-to-image model; {WHOLE}"
        return
    if known and ARCHITECTURES[max(known, key=len)] != family:
        right = ARCHITECTURES[max(known, key=len)]
        yield f"metadata modelspec.architecture = {architecture!r}: a model of teacher.backbone: {right}"
        return
    if (missing := missing_parts(names, adapter, config)) is not None:
        yield missing
        return
    if (shape := header.shapes.get(FIRST_LAYER, ())) and len(shape) == 4 and shape[1] != 4:
        yield (
            f"key {FIRST_LAYER}: {shape[1]} input channels: the network takes an image or mask as a further "
            "input (inpainting, editing); this family takes 4"
        )
    if config.weights == "ema" and not ema_names(names):
        yield f"import_teacher.weights = ema: the file has no {EMA}* weights; set plain"
    try:
        marks = marks_of(header, config.prediction)
    except UserError as error:
        yield str(error)
        return
    if marks.zero_snr and marks.prediction == Prediction.EPSILON:
        yield (
            f"{marks.source}: an epsilon-prediction does not determine the image at pure noise; set "
            "import_teacher.prediction: v_prediction if that is what it predicts"
        )


def missing_parts(
    names: list[str], adapter: type[DiffusersBackbone], config: ImportTeacherConfig
) -> str | None:
    """What the file lacks to be a full checkpoint, or what it is instead; None: it is complete."""
    parts = {name: prefix for name, prefix in adapter.single_file_parts.items() if name not in config.without}
    missing = [part for part, prefix in parts.items() if not holds(names, prefix)]
    if not missing:
        return None
    family = adapter.__module__.rpartition(".")[2]
    families = [name for name, signs in FAMILIES.items() if any(holds(names, sign) for sign in signs)]
    if families and family not in families:
        return f"is a checkpoint of another family; set teacher.backbone: {families[0]}"
    if optional := [part for part in missing if part in adapter.optional_parts]:
        without = f"import_teacher.without: [{', '.join(optional)}]"
        if len(optional) == len(missing):
            return f"has no {', '.join(missing)}; load a whole checkpoint, or set {without}"
    others = [part for part in parts if part != adapter.net_part]
    if missing in (list(parts), others):
        what = ALONE if missing == others else kind_of(names)
        lacks = f" ({', '.join(others)} are missing)" if what == ALONE else ""
        return f"is {what}{lacks}; {WHOLE}"
    names_of = ", ".join(f"{parts[part]}*" for part in missing)
    return f"has no {', '.join(missing)} (no tensor is named {names_of}); {WHOLE}"


def kind_of(names: list[str]) -> str:
    """Kind of a file that is not a full checkpoint."""
    return next((kind for kind, signs in KINDS if is_a(names, signs)), "no checkpoint that is known here")


def holds(names: list[str], prefix: str) -> bool:
    """Whether any tensor's name has this prefix; two prefixes are in use for autoencoders."""
    prefixes = ("first_stage_model.", "vae.") if prefix in ("first_stage_model.", "vae.") else (prefix,)
    return any(name.startswith(prefixes) for name in names)


def is_a(names: list[str], signs: tuple[str, ...]) -> bool:
    """Whether any tensor's name begins with a sign, or contains one that begins with a dot."""
    return any(name.startswith(sign) or (sign[0] == "." and sign in name) for name in names for sign in signs)


def ema_names(names: list[str]) -> dict[str, str]:
    """Name of a denoiser's tensor -> name of its EMA; empty unless every tensor has one."""
    present = set(names)
    pairs = {
        name: EMA + name.removeprefix("model.").replace(".", "")
        for name in names
        if name.startswith("model.diffusion_model.")
    }
    return pairs if pairs and present.issuperset(pairs.values()) else {}


def with_averages(state: Mapping[str, object]) -> dict[str, object]:
    """The checkpoint with each of the denoiser's tensors replaced by its EMA."""
    pairs = ema_names(list(state))
    kept = {name: value for name, value in state.items() if not name.startswith(EMA)}
    return kept | {name: state[average] for name, average in pairs.items()}
