"""Whether this CPU computes faster in bfloat16 than in float32: measured once, and cached.

The CPU's flags alone do not decide it. With AMX bfloat16 is several times faster than float32, with
AVX512-BF16 about 1.4 times; a CPU with neither emulates it.
"""

import json
import platform
import time
from collections.abc import Callable
from pathlib import Path

import torch
from platformdirs import user_cache_path
from torch import nn

from fewstep.core.errors import UserError
from fewstep.core.files import whole_file

MARGIN = 1.15
"""Smallest speed-up for which bfloat16 is chosen. It is less precise, and near 1 the choice is random."""
ROUNDS = 5


def bfloat16_pays(remembered: Path | None = None) -> bool:
    """Whether this CPU trains a small convolution clearly faster in bfloat16 than in float32.

    Measured at the first call on a machine, in about a third of a second. Later processes read the result
    from `remembered` (default: the user's cache folder), so that all stages of a chain choose alike.
    """
    if not (torch.cpu._is_amx_tile_supported() or torch.cpu._is_avx512_bf16_supported()):
        return False
    file = remembered or user_cache_path("fewstep") / "precision.json"
    machine = f"{processor()}, {torch.get_num_threads()} threads, torch {torch.__version__}"
    known = recall(file)
    if machine not in known:
        known[machine] = ratio() > MARGIN
        remember(file, known)
    return known[machine]


def ratio(clock: Callable[[], float] = time.perf_counter) -> float:
    """Time of a training step in float32 over that in bfloat16: minima of ROUNDS each, run alternately.

    The caller may be without gradients, in inference mode or in autocast. torch's random state is unchanged.
    """
    best = {False: float("inf"), True: float("inf")}
    with torch.inference_mode(False), torch.random.fork_rng(devices=[]):
        layer = nn.Sequential(nn.Conv2d(64, 64, 3, padding=1), nn.SiLU(), nn.Conv2d(64, 64, 3, padding=1))
        x = torch.rand(32, 64, 16, 16)
        for _ in range(1 + ROUNDS):  # the first is a warm-up; it is slower, so the minimum ignores it
            for half in best:
                begun = clock()
                with torch.autocast("cpu", torch.bfloat16, enabled=half):
                    loss = layer(x).float().square().mean()
                loss.backward()
                best[half] = min(best[half], clock() - begun)
    return best[False] / best[True]


def processor() -> str:
    """The CPU's name."""
    listed = Path("/proc/cpuinfo")
    if listed.is_file():
        for line in listed.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def recall(file: Path) -> dict[str, bool]:
    """Machine -> earlier result; empty where the file is missing or damaged."""
    try:
        known = json.loads(file.read_text())
    except (OSError, ValueError):
        return {}
    return known if isinstance(known, dict) else {}


def remember(file: Path, known: dict[str, bool]) -> None:
    """Write the results; does nothing where the folder is not writable."""
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with whole_file(file) as staging:
            staging.write_text(json.dumps(known, indent=2, sort_keys=True) + "\n")
    except (OSError, UserError):
        return
