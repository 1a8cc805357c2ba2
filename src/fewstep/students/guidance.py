"""Classifier-free guidance of the model that a student learns from: one scale, or one drawn per sample."""

from collections.abc import Sequence

import torch

from fewstep.backbones.model import Model
from fewstep.config.sampling import Scale, ScaleRange
from fewstep.core.hardware import upload
from fewstep.core.keyed import Key
from fewstep.diffusion.denoiser import GUIDANCE, Conditions, Denoise, guided, within
from fewstep.diffusion.sampling import Guidance
from fewstep.students.config import MethodConfig
from fewstep.students.context import Context


class GuidedConfig(MethodConfig):
    """Parameters of a method whose student learns a guided model's predictions."""

    guidance: Scale | ScaleRange = 1.0
    """Guidance scale of what the student learns from. A range: drawn per sample. With `guidance_embedding`
    the student takes its sample's scale; without, it learns the mean over the range (LCM-LoRA, Flash)."""

    @property
    def draws_guidance(self) -> bool:
        return isinstance(self.guidance, tuple)

    @property
    def scale(self) -> float:
        """The scale of all samples; 1 where each has its own."""
        return self.guidance if isinstance(self.guidance, float) else 1.0

    @property
    def per_sample(self) -> bool:
        """Whether each sample has a scale of its own: drawn here, or its triplet's."""
        return self.draws_guidance or self.guidance_embedding


def guided_model(model: Model, context: Context, scale: float, per_sample: bool) -> Denoise:
    """The model's estimate at a guidance scale, with the negative prompt and the interval of `sampling`.

    per_sample: samples may have scales of their own in their conditions, where the model is guided by a
    scale. At scale 1 without such conditions, guidance changes nothing: the model is evaluated once per step.
    """
    by_scale = model.sampling.guidance is Guidance.SCALE
    if scale != 1 or (by_scale and per_sample):
        applies = within(model.denoiser, context.guidance_interval)
        return guided(model.denoiser, context.unconditional(), scale, applies)
    return model.denoiser


def with_scales(
    conditions: Conditions, context: Context, guidance: float | tuple[float, float], positions: Sequence[int]
) -> Conditions:
    """The conditions with a guidance scale per sample, uniform in the range; unchanged where it is a number.

    Random stream: `guidance` of the training.
    """
    if isinstance(guidance, float):
        return conditions
    low, high = guidance
    drawn = low + (high - low) * context.key("guidance").uniform(positions)[:, 0]
    return conditions | {GUIDANCE: upload(torch.from_numpy(drawn).float())}


def partly_unconditional(
    conditions: Conditions, free: Conditions, share: float, key: Key, positions: Sequence[int]
) -> Conditions:
    """The conditions, those of some samples replaced by `free`, which has batch size 1.

    So a network learns the unconditional branch of guidance as well (Ho & Salimans 2022, algorithm 1).
    share: probability of a sample. key: of the choice. Conditions that `free` does not have stay.
    """
    chosen = upload(torch.from_numpy(key.uniform(positions)[:, 0] < share))
    replaced = {
        name: torch.where(chosen.reshape(-1, *[1] * (value.ndim - 1)), free[name].to(value), value)
        for name, value in conditions.items()
        if name in free
    }
    return conditions | replaced
