"""The network of every model of a chain before it exists: its own architecture, not the teacher's."""

from functools import partial
from typing import NamedTuple

from torch import nn

from fewstep.chain import Chain
from fewstep.checks.tracing import Design, on_meta
from fewstep.config.base import PARAMS
from fewstep.core.errors import UserError
from fewstep.diffusion.sampling import TEACHERS, Guidance
from fewstep.students.config import MethodConfig

TEACHER = "teacher"


class Networks(NamedTuple):
    """Networks of a training: the trained one, its start's and the teacher's."""

    net: Design
    start: Design
    teacher: Design


def designs(chain: Chain, teacher: Design) -> dict[str, Design]:
    """Name of a model -> its network; one object for models of one architecture. The teacher is among them.

    teacher: `teacher.design(chain)`. Inputs that a method adds are left out: they have few weights. Raises
    UserError, with the model's place in params.yaml, where its network cannot be made from its start's.
    """
    models = chain.models()
    by_name = {TEACHER: teacher}

    def of(name: str) -> Design:
        if name not in by_name:
            config = models[name].config
            start = of(config.from_)
            try:
                by_name[name] = successor(start, config)
            except UserError as error:
                raise UserError(f"{PARAMS}: {models[name].place}: {error}") from None
        return by_name[name]

    return {name: of(name) for name in (TEACHER, *models)}


def networks(chain: Chain, by_name: dict[str, Design], training: str) -> Networks:
    """by_name: `designs`. training: its name in the plan, which is the model's, or the teacher's stage."""
    models, teacher = chain.models(), by_name[TEACHER]
    if training not in models:
        return Networks(teacher, teacher, teacher)
    return Networks(by_name[training], by_name[models[training].config.from_], teacher)


def is_guided(chain: Chain, name: str) -> bool:
    """Whether a solver step evaluates the model with and without the prompt."""
    models, line = chain.models(), [name]
    while line[-1] != TEACHER:
        line.append(models[line[-1]].config.from_)
    sampling = TEACHERS
    for each in reversed(line[:-1]):
        sampling = models[each].config.sampling(sampling, ())
    return sampling.guidance is Guidance.SCALE and chain.sampling.guidance != 1


def successor(start: Design, config: MethodConfig) -> Design:
    """The network of a model with these parameters that is made from `start`."""
    net = on_meta(start)
    if config.network(net) is net:
        return start
    return Design(start.backbone, partial(made, start, config), start.length, start.pipeline)


def made(start: Design, config: MethodConfig) -> nn.Module:
    """The untrained network of such a model."""
    return config.network(start.make())
