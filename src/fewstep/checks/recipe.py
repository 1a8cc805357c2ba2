"""Warns of training settings outside the published ranges, which can destroy a pretrained model.

The ranges span the published settings for fine-tuning Stable Diffusion and similar models, extended by a
factor of about three on either side. Whole networks: InstaFlow, DMD2 and BK-SDM (learning rates of 1e-6 to
1e-4 with AdamW, DMD2's SDXL 5e-7; 32 to 2,048 samples per step), progressive distillation (5e-5, 128).
Adapters: latent consistency models (1e-4, 12 to 96; diffusers, examples/consistency_distillation), Flash
Diffusion (1e-5, 2 to 4), PCM (5e-6).
"""

from collections.abc import Iterator

from fewstep.chain import Chain
from fewstep.config.training import OptimizerConfig
from fewstep.students.config import MethodConfig

WHOLE, ADAPTER = (1e-7, 2e-4), (1e-6, 1e-3)
"""Learning rates of whole networks and of low-rank adapters."""
WHOLE_BATCH, ADAPTER_BATCH = (10, 6000), (1, 300)
"""Samples per step of whole networks and of low-rank adapters."""
OPTIMIZERS = ("adamw", "adamw_8bit")


def warnings(chain: Chain) -> Iterator[str]:
    """Unusual settings of an imported teacher's students; halving rounds whose step counts do not match."""
    yield from rounds(chain)
    if not chain.teacher.load:
        return
    for model in chain.models().values():
        if model.training is None:
            continue
        for fault in unusual(model.config):
            yield f"{model.place}.{fault}"


def unusual(config: MethodConfig) -> Iterator[str]:
    """Settings of one training that are far from all published ones."""
    what, rates, sizes = (
        ("adapter", ADAPTER, ADAPTER_BATCH) if config.lora else ("whole network", WHOLE, WHOLE_BATCH)
    )
    advice = "`fewstep init` writes published settings"
    for name, optimizer in [("training", config.training), *further(config)]:
        if optimizer.optimizer not in OPTIMIZERS:
            yield (
                f"{name}.optimizer = {optimizer.optimizer}: pretrained models are published with AdamW only; "
                f"{advice}"
            )
        if not rates[0] <= optimizer.learning_rate <= rates[1]:
            yield (
                f"{name}.learning_rate = {optimizer.learning_rate:g}: published for a pretrained {what} are "
                f"{rates[0]:g} to {rates[1]:g}; {advice}"
            )
    if not sizes[0] <= config.training.batch_size <= sizes[1]:
        yield (
            f"training.batch_size = {config.training.batch_size}: published for a pretrained {what} are "
            f"{sizes[0]} to {sizes[1]}; {advice}"
        )


def further(config: MethodConfig) -> list[tuple[str, OptimizerConfig]]:
    """Optimizers of further trained networks, by their key in the method's section."""
    theirs = {id(optimizer) for optimizer in config.further_networks}
    return [(name, value) for name, value in config if id(value) in theirs]


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
