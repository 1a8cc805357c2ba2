"""Compression: a network with fewer blocks learns from the one that it was cut from.

BK-SDM (Kim et al. 2023, "On architectural compression of text-to-image diffusion models") has the weights
1/1/1, segmind's distill-sd 1/0.5/0.5, SDXS no task term. What is cut, and where the weights come from:
`compression/unet.py`, `compression/transformer.py`.

    L = w_task ||y - S(x_t)||^2 + w_output ||T(x_t) - S(x_t)||^2 + w_feature sum_l ||T_l(x_t) - S_l(x_t)||^2

T is the start model, S the student, both in the prediction of their network (eps, v, velocity ...), and y
what an exact network predicts for the data. Each square is a mean over elements. T_l and S_l are the outputs
of whole blocks. The student keeps its start's path, number of steps and sampling settings.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.nn.functional import mse_loss

from fewstep.backbones.model import Model
from fewstep.compression.choice import reduction_of
from fewstep.compression.reduction import Reduction, reduced
from fewstep.core.errors import UserError
from fewstep.core.hardware import upload
from fewstep.diffusion.denoiser import END_TIME, Conditions, add_noise
from fewstep.diffusion.sampling import Guidance, Sampling
from fewstep.students.config import MethodConfig
from fewstep.students.context import Context
from fewstep.students.guidance import partly_unconditional
from fewstep.students.method import StudentMethod
from fewstep.students.noising import with_fresh_noise
from fewstep.training.method import Group, Rows
from fewstep.training.taps import tapped

GRID = 1000
"""Number of times of a start model that was made for any number of steps: those of Stable Diffusion."""
Weight = Annotated[float, Field(ge=0)]
Size = Literal[
    "full", "base", "small", "tiny", "sdxs", "sd_small", "sd_tiny", "ssd_1b", "vega", "koala_1b", "koala_700m"
]
"""Sizes of a U-Net, and their other names: `compression/unet.py`, for SDXL `compression/published.py`."""


class Config(MethodConfig):
    """Parameters of a `compress` entry."""

    learns_from: ClassVar[tuple[str, ...]] = ("triplets", "encoded")
    unet: Size | None = None
    """Size of a U-Net; `sd_small` and `sd_tiny` are base and tiny."""
    attention: tuple[bool, ...] = ()
    """Whether each resolution of the smaller U-Net keeps its attention to the text, from the highest down;
    empty: as `unet` says."""
    blocks: dict[str, int | tuple[int, ...]] | None = None
    """Stack of a transformer -> how many of its blocks stay, or which; see `compression/transformer.py`."""
    noise: Literal["fresh", "pairs"] = "fresh"
    """pairs: each triplet's own noise, for a start model that `reflow` or `direct` trained on it."""
    task_weight: Weight = 1.0
    """Weight of the error against the data."""
    output_weight: Weight = 1.0
    """Weight of the error against the start model's output."""
    feature_weight: Weight = 1.0
    """Weight of the sum of the errors against the outputs of its blocks."""
    unconditional: float = Field(0.1, ge=0, lt=1)
    """Share of prompts replaced by the negative prompt, where the start model is guided by a scale."""

    @model_validator(mode="before")
    @classmethod
    def _renamed(cls, values: Any) -> Any:
        if isinstance(values, Mapping) and "size" in values:
            raise ValueError("size: is named `unet`, because DVC does not see changes of a key named `size`")
        return values

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if (self.unet is None) == (self.blocks is None):
            raise ValueError("give either unet (its size) or blocks (of a transformer)")
        if self.attention and self.unet is None:
            raise ValueError("attention: of a U-Net; a transformer is made smaller by blocks alone")
        if self.lora is not None or self.guidance_embedding:
            raise ValueError("lora, guidance_embedding: for a later model that starts from this one")
        if self.noise == "pairs" and self.data != "triplets":
            raise ValueError("noise = 'pairs': real images have no noise of their own; set data: triplets")
        if not self.task_weight + self.output_weight + self.feature_weight:
            raise ValueError("task_weight, output_weight, feature_weight: all are 0, so there is no loss")
        return self

    @property
    def allows_lora(self) -> bool:
        return False

    def network(self, start: nn.Module) -> nn.Module:
        return reduced(start, self.reduction(start))

    def reduction(self, start: nn.Module) -> Reduction:
        """What is removed from the start model's network."""
        return reduction_of(start, self.unet, self.blocks, self.attention)

    def sampling(self, start: Sampling, inputs: Sequence[str]) -> Sampling:
        return start


def student_of(config: Config, start: Model) -> Model:
    """The small network with its start's path and number of steps.

    Raises UserError where the task term would teach means of the data to a student, which predicts samples,
    or samples to a teacher.
    """
    denoises = start.sampling.guidance is Guidance.SCALE
    fits = denoises == (config.noise == "fresh") and END_TIME not in start.denoiser.inputs
    if config.task_weight > 0 and not fits:
        raise UserError(
            "task_weight: fits a teacher with noise: fresh, and a student made by reflow or direct with "
            "noise: pairs; for other start models set it to 0"
        )
    return start


@dataclass(frozen=True)
class Batch:
    """x_0, x_t `[B, ...]` float64; t: time of x_t, end: of a flow map's step, both `[B]`."""

    x_0: Tensor
    x_t: Tensor
    t: Tensor
    end: Tensor
    conditions: Conditions


class Compress(StudentMethod):
    """The three terms of BK-SDM; that of the features is a loss per block, `features/BLOCK`."""

    def __init__(self, config: Config, context: Context, student: Model) -> None:
        super().__init__(config, context, student)
        self.config, self.start = config, context.start
        self.groups = {"student": Group({"net": student.net}, config.training)}
        self.frozen = (self.start.net,)
        self.blocks = config.reduction(self.start.net).features
        guided = self.start.sampling.guidance is Guidance.SCALE
        self.free = context.unconditional() if guided and config.unconditional > 0 else None

    def batch(self, rows: Rows) -> Batch:
        """Times of the start's steps, or any of GRID. Random streams: `times`, `noise`, `unconditional`."""
        context, positions = self.context, rows.positions
        uniform = upload(torch.from_numpy(context.key("times").uniform(positions, 2)))
        steps = self.start.steps or GRID
        t = ((uniform[:, 0] * steps).floor() + 1) / steps
        end = t - 1 / steps if self.start.steps else uniform[:, 1] * t
        if self.config.noise == "pairs":
            pairs = context.triplet_batch(positions)
            x_0, eps, conditions = pairs.x_0.double(), pairs.eps.double(), pairs.conditions
        else:
            x_0, eps, conditions = with_fresh_noise(context, positions)
        x_t = add_noise(self.denoiser.path, x_0, eps, t)
        if self.free is not None:
            key, share = context.key("unconditional"), self.config.unconditional
            conditions = partly_unconditional(conditions, self.free, share, key, positions)
        return Batch(x_0, x_t, t, end, conditions)

    def losses(self, group: str, batch: Batch, step: int) -> dict[str, Tensor]:
        config, terms = self.config, {}
        taps = self.blocks if config.feature_weight > 0 else {}
        with torch.no_grad():
            wanted, targets = self.evaluated(self.start, [*taps.values()], batch)
        raw, features = self.evaluated(self.student, [*taps], batch)
        if config.task_weight > 0:
            exact = self.denoiser.exact(batch.x_0, batch.x_t, batch.t)
            terms["task"] = config.task_weight * mse_loss(raw, exact.float())
        if config.output_weight > 0:
            terms["output"] = config.output_weight * mse_loss(raw, wanted)
        for block, layer in taps.items():
            difference = mse_loss(features[block], targets[layer])
            terms[f"features/{block}"] = config.feature_weight * difference
        return terms

    def evaluated(
        self, model: Model, layers: Sequence[str], batch: Batch
    ) -> tuple[Tensor, Mapping[str, Tensor]]:
        """A model's raw output `[B, ...]` and the outputs of its layers, float32."""
        with tapped(model.net, layers) as outputs:
            raw = model.denoiser.raw(batch.x_t, batch.t, batch.conditions | {END_TIME: batch.end})
        return raw.float(), {name: value.float() for name, value in outputs.items()}


METHOD = Compress
