"""Stages and commands say their own lines; what libraries say beside them is left out."""

import logging
import os
import sys
import warnings
from functools import partial, partialmethod

from tqdm import tqdm  # type: ignore[import-untyped]

LEVELS = {
    # A line per batch whose prompts are cut, which the chain counts once; but not of what is loaded.
    "diffusers.pipelines": logging.ERROR,
    "diffusers.pipelines.pipeline_utils": logging.WARNING,
    "diffusers.pipelines.pipeline_loading_utils": logging.WARNING,
    # A compiler for GPUs on a machine without one.
    "torch.utils.cpp_extension": logging.ERROR,
}
"""Logger -> the least that it says."""
NOISE = {
    "transformers.tokenization_utils_base": "sequence length is longer",  # cut prompts are counted here
    "diffusers.models.modeling_utils": "should be kept in float32",
    "diffusers.pipelines.pipeline_utils": "cannot be saved",  # parts that are None
    "diffusers.loaders.single_file_utils": "only the non-EMA weights are extracted",  # the import says which
}
"""Logger -> what it says although nothing is wrong."""


def quiet() -> None:
    """Turn off what libraries print, whether they are imported already or not; call it once, at the start.

    Progress bars: all that do not decide for themselves. Those of downloads do, and show on a terminal.
    Warnings: deprecations, which are for who writes code. Telemetry of libraries that phone home.
    """
    for name in ("DO_NOT_TRACK", "HF_HUB_DISABLE_TELEMETRY"):
        os.environ.setdefault(name, "1")
    if constants := sys.modules.get("huggingface_hub.constants"):
        constants.HF_HUB_DISABLE_TELEMETRY = True  # type: ignore[attr-defined]
    # tqdm reads TQDM_DISABLE when it is imported, which may be over: the default itself is changed, too.
    os.environ.setdefault("TQDM_DISABLE", "1")
    tqdm.__init__ = partialmethod(tqdm.__init__, disable=True)
    if not sys.warnoptions:
        for kind in (DeprecationWarning, PendingDeprecationWarning, FutureWarning):
            warnings.simplefilter("ignore", kind)
    for name, level in LEVELS.items():
        logging.getLogger(name).setLevel(level)
    for name, phrase in NOISE.items():
        logging.getLogger(name).addFilter(partial(says_else, phrase))


def says_else(phrase: str, record: logging.LogRecord) -> bool:
    """Whether a logger says something else than this."""
    return phrase not in str(record.msg)
