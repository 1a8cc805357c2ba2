"""What the C library keeps of weights that were rounded."""

import ctypes
import json
import subprocess
import sys
from os import environ

import pytest

ROUND = """
import json, psutil, torch
from torch import nn
from fewstep.training.half import halve_frozen
private = lambda: psutil.Process().memory_full_info().uss
del (large := [torch.empty(31 << 18)])[:]  # from now on glibc takes blocks of up to 31 MB from its heap
before = private()
net = nn.Sequential(*[nn.Linear(1024, 1024, bias=False) for _ in range(64)]).requires_grad_(False)
whole = private()
halve_frozen([net])
print(json.dumps([whole - before, private() - before]))
"""


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "malloc_trim"), reason="the C library is not glibc")
def test_the_memory_of_whole_weights_is_given_back() -> None:
    place = environ | {"ACCELERATE_MIXED_PRECISION": "bf16", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(
        [sys.executable, "-c", ROUND], env=place, capture_output=True, text=True, check=True
    )
    whole, rounded = json.loads(done.stdout)
    assert whole > 256e6
    assert rounded < 0.6 * whole, "all weights are linear"
