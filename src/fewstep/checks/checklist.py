"""`fewstep check`: finds every fault that can be found before any compute."""

from fewstep.chain import Chain
from fewstep.checks import data, inputs, keys, machine, recipe, settings
from fewstep.core.errors import UserError


def check(chain: Chain) -> None:
    """Raises UserError with one line per fault that some stage would stop at."""
    faults = [fault for kind in (keys, inputs, data, settings, machine) for fault in kind.faults(chain)]
    if faults:
        raise UserError("\n".join(dict.fromkeys(faults)))


def warnings(chain: Chain) -> list[str]:
    """Problems that do not stop the chain, but likely spoil its results."""
    return [warning for kind in (inputs, data, recipe) for warning in kind.warnings(chain)]
