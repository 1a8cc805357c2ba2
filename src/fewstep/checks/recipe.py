"""Warns of training settings outside the published ranges, which can destroy a pretrained model.

The ranges span the published learning rates for fine-tuning Stable Diffusion and similar models, extended by
a factor of about three on either side. Whole networks: InstaFlow, DMD2 and BK-SDM (1e-6 to 1e-4 with AdamW),
progressive distillation (5e-5). Adapters: latent consistency models (1e-4; diffusers,
examples/consistency_distillation), Flash Diffusion (1e-5), PCM (5e-6).
"""

from collections.abc import Iterator

from fewstep.chain import Chain
from fewstep.students.config import MethodConfig

WHOLE, ADAPTER = (1e-7, 2e-4), (1e-6, 1e-3)
"""Learning rates of whole networks and of low-rank adapters."""
OPTIMIZERS = ("adamw", "adamw_8bit")


def warnings(chain: Chain) -> Iterator[str]:
    """Unusual settings of an imported teacher's students; halving rounds whose step counts do not match."""
    yield from rounds(chain)
    if not chain.teacher.load:
        return
    for model in chain.models().values():
        for fault in unusual(model.config):
            yield f"{model.place}.{fault}"


def unusual(config: MethodConfig) -> Iterator[str]:
    """Settings of one training that are far from all published ones."""
    training, (low, high) = config.training, ADAPTER if config.lora else WHOLE
    what = "adapter" if config.lora else "whole network"
    if training.optimizer not in OPTIMIZERS:
        yield (
            f"training.optimizer = {training.optimizer}: pretrained models are published with AdamW only; "
            "params/sd15.yaml has settings to begin with"
        )
    if not low <= training.learning_rate <= high:
        yield (
            f"training.learning_rate = {training.learning_rate:g}: published for a pretrained {what} are "
            f"{low:g} to {high:g}; params/sd15.yaml has settings to begin with"
        )


def rounds(chain: Chain) -> Iterator[str]:
    """Halving rounds whose start model was made for another step count than twice their own."""
    models = chain.models()
    steps = {name: model.config.steps for name, model in models.items() if model.section == "halve"}
    for name, count in steps.items():
        start = models[name].config.from_
        if steps.get(start, 2 * count) != 2 * count:
            yield (
                f"{models[name].place}.steps = {count}: {start} was made for {steps[start]} steps, and is "
                f"asked for {2 * count}"
            )
