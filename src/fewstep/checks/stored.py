"""Size of the denoisers in the models' artifacts before they exist; backbones/stored.py writes them."""

from fewstep.chain import Chain
from fewstep.checks.designs import TEACHER
from fewstep.checks.memory import FLOAT
from fewstep.checks.tracing import Design, adapter_parameters, parameters
from fewstep.core.errors import UserError

BYTES = {"float32": 4, "float16": 2, "bfloat16": 2}
"""Of a number on disk."""


def whole(nets: dict[str, Design]) -> dict[str, int]:
    """Model -> bytes of its network. nets: `designs`."""
    return {name: FLOAT * parameters(net) for name, net in nets.items()}


def own_adapter(chain: Chain, nets: dict[str, Design], name: str) -> int:
    """Bytes of the adapter that a model is trained as; 0 without `lora`.

    Also 0 for impossible settings, which another check reports with their place.
    """
    lora = chain.models()[name].config.lora
    try:
        return FLOAT * adapter_parameters(nets[name], lora) if lora else 0
    except UserError:
        return 0


def stored(chain: Chain, nets: dict[str, Design]) -> dict[str, int]:
    """Model -> bytes of its adapters since the teacher, or of its network and its own adapter."""
    models, size = chain.models(), whole(nets)

    def adapters(name: str) -> int | None:
        if name == TEACHER:
            return 0
        config = models[name].config
        before = adapters(config.from_) if config.lora else None
        return None if before is None else before + own_adapter(chain, nets, name)

    def of(name: str) -> int:
        alone = adapters(name)
        if alone is not None:
            return alone
        net = size[name] * BYTES[models[name].config.dtype] // FLOAT
        return net + own_adapter(chain, nets, name)

    return {name: of(name) for name in models if name in nets}
