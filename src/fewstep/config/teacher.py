"""`teacher:`, `train_teacher:` and `import_teacher:` where the teacher comes from."""

import re
from typing import Annotated, Literal

from pydantic import AfterValidator, Field, model_validator

from fewstep.config.base import Place, Section
from fewstep.config.training import TrainingConfig


def factory_name(value: str) -> str:
    """`package.module:factory`. Raises ValueError on another form."""
    if not re.fullmatch(r"[^\W\d]\w*(\.[^\W\d]\w*)*:[^\W\d]\w*", value):
        raise ValueError(
            "expected `package.module:factory`, a module's name and a function in it, as "
            "`examples.own_model.model:build` for the file examples/own_model/model.py"
        )
    return value


class TeacherConfig(Section):
    """The `teacher` section: exactly one of the three lists has an entry."""

    backbone: str
    """Model family, a file of src/fewstep/backbones."""
    train: tuple[str, ...] = ()
    """[NAME]: train it here, with the section `train_teacher`."""
    load: tuple[Place, ...] = ()
    """[WHERE]: a diffusers folder, hub id or .safetensors checkpoint to import instead. May be a name in
    `inputs`, so that no stage's name contains a path of this machine."""
    adopt: tuple[Annotated[str, AfterValidator(factory_name)], ...] = ()
    """[package.module:factory]: a model of your own instead; its backbone is `custom`.

    The module is below the project's root or installed; `factory(trained: bool)` returns a
    `fewstep.backbones.custom.CustomModel`, see docs/custom_model.md.
    """

    @model_validator(mode="after")
    def _one(self) -> "TeacherConfig":
        if len(self.train) + len(self.load) + len(self.adopt) != 1:
            raise ValueError("exactly one entry is needed in `train`, `load` and `adopt` together")
        if bool(self.adopt) != (self.backbone == "custom"):
            raise ValueError("an adopted teacher has the backbone `custom`, and no other has")
        if self.train and self.backbone != "sd":
            raise ValueError("`train` makes a teacher of the backbone `sd` only")
        return self


class VaeConfig(Section):
    """AutoencoderKL."""

    channels: tuple[int, ...]
    """Widths per level, from full resolution down; each further level halves the side."""
    layers: int = Field(1, ge=1)
    """Residual blocks per level."""
    latent_channels: int = Field(ge=1)
    kl_weight: float = Field(1e-6, ge=0)
    """Weight of the KL divergence per latent element; the mean absolute pixel error has weight 1."""
    square_weight: float = Field(0.0, ge=0)
    """Weight of the mean squared pixel error."""
    edge_weight: float = Field(0.0, ge=0)
    """Weight of the error of finite differences, which keeps edges sharp."""
    training: TrainingConfig


class TextConfig(Section):
    """CLIPTextModel with a byte-pair tokenizer learned from the training captions."""

    width: int = Field(ge=8)
    layers: int = Field(ge=1)
    heads: int = Field(ge=1)
    length: int = Field(77, ge=4)
    """Tokens per prompt."""
    vocabulary: int = Field(1000, ge=514)
    """Largest number of tokens; 514 are single bytes and special tokens."""


class NetConfig(Section):
    """UNet2DConditionModel."""

    channels: tuple[int, ...]
    attention: tuple[bool, ...]
    """Whether a level has cross-attention to the text."""
    layers: int = Field(1, ge=1)
    head_channels: int = Field(32, ge=4)
    """Channels per attention head."""
    groups: int = Field(16, ge=1)
    """GroupNorm groups."""

    @model_validator(mode="after")
    def _levels(self) -> "NetConfig":
        if len(self.channels) != len(self.attention):
            raise ValueError("channels and attention need one entry per level")
        return self


class TrainTeacherConfig(Section):
    """The `train_teacher` section: a small latent diffusion model with Stable Diffusion's architecture."""

    vae: VaeConfig
    text: TextConfig
    net: NetConfig
    noise_bias: float = Field(1.0, gt=0)
    """Times are drawn with density `b t^(b - 1)`: 1 is uniform; 2 doubles the density at pure noise."""
    caption_dropout: float = Field(0.1, ge=0, lt=1)
    """Share of training captions replaced by the empty prompt, for guidance."""
    word_dropout: float = Field(0.0, ge=0, lt=1)
    """Share of words left out of the other captions, so that each word's meaning is learned separately."""
    training: TrainingConfig


class ImportTeacherConfig(Section):
    """The `import_teacher` section."""

    revision: str | None = None
    """Commit of a hub repository; null: the newest."""
    variant: str | None = None
    """Weights variant of a diffusers folder, e.g. `fp16`, `non_ema`."""
    weights: Literal["plain", "ema"] = "plain"
    """For a single file with both: `plain` takes the trained weights, `ema` their moving average."""
    prediction: Literal["epsilon", "v_prediction"] | None = None
    """What the network predicts, where the teacher's configuration or metadata is wrong or missing."""
    without: tuple[str, ...] = ()
    """Parts to leave out that are optional in their model family: SD3's `text_encoder_3` (T5)."""
    dtype: Literal["float32", "float16", "bfloat16"] = "float32"
    """Type of the weights on disk; the precision of the computation is a setting of the machine."""
    config: Place | None = None
    """For a single file whose weights do not identify its pipeline: folder or hub id of a similar one."""
    local_files_only: bool = False
    """Take a hub repository from the local cache only."""
