"""The start model with classifier-free guidance, as a student learns its steps."""

from fewstep.diffusion.denoiser import Denoise, guided
from fewstep.diffusion.sampling import Guidance
from fewstep.students.context import Context


def guided_start(context: Context, scale: float, by_condition: bool) -> Denoise:
    """The start model's estimate at a guidance scale, with the negative prompt of `sampling`.

    by_condition: each sample may have its own scale in its conditions, where the start is guided by a scale.
    At scale 1 without such conditions, guidance changes nothing and the start is evaluated once per step.
    """
    by_scale = context.start.sampling.guidance is Guidance.SCALE
    if scale != 1 or (by_scale and by_condition):
        return guided(context.start.denoiser, context.unconditional(), scale)
    return context.start.denoiser
