"""Whether the settings of a training lie where published ones do: others destroy a pretrained model.

The ranges span what is published for fine-tuning Stable Diffusion and its like, with a factor of about three
to either side: whole networks InstaFlow, DMD2 and BK-SDM (1e-6 to 1e-4 by AdamW), progressive distillation
5e-5; adapters latent consistency models' (1e-4; diffusers, examples/consistency_distillation), Flash
Diffusion 1e-5, PCM 5e-6.
"""

from collections.abc import Iterator

from fewstep.config.chain import Chain, section
from fewstep.objectives.ingredients import ObjectiveConfig

WHOLE, ADAPTER = (1e-7, 2e-4), (1e-6, 1e-3)
"""Learning rates of whole networks and of low-rank adapters."""
OPTIMIZERS = ("adamw", "adamw_8bit")


def warnings(chain: Chain) -> Iterator[str]:
    """Settings of an imported teacher's students far from all published ones; rounds out of step."""
    yield from rounds(chain)
    if not chain.teacher.load:
        return
    for name, config in chain.objectives().items():
        for fault in unusual(config):
            yield f"{section(chain, name)}.{fault}"


def unusual(config: ObjectiveConfig) -> Iterator[str]:
    """What is far from the published settings of one training."""
    training, (low, high) = config.training, ADAPTER if config.lora else WHOLE
    what = "adapter" if config.lora else "whole network"
    if training.optimizer not in OPTIMIZERS:
        yield (
            f"training.optimizer = {training.optimizer}: pretrained models are published with AdamW alone; "
            "params/sd15.yaml has settings to begin with"
        )
    if not low <= training.learning_rate <= high:
        yield (
            f"training.learning_rate = {training.learning_rate:g}: published for a pretrained {what} are "
            f"{low:g} to {high:g}; params/sd15.yaml has settings to begin with"
        )


def rounds(chain: Chain) -> Iterator[str]:
    """Halving rounds whose start was made for another number of steps than twice their own."""
    for name, config in chain.halve.items():
        start = (
            chain.halve.get(config.from_.removeprefix("halve-"))
            if config.from_.startswith("halve-")
            else None
        )
        if start is not None and start.steps != 2 * config.steps:
            yield (
                f"halve.{name}.steps = {config.steps}: {config.from_} was made for {start.steps} steps, and "
                f"is asked for {2 * config.steps}"
            )
