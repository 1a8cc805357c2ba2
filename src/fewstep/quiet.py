"""Stages and commands say their own lines; what libraries say beside them is left out."""

import logging
import os
import sys
import warnings
from functools import partialmethod

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
    logging.getLogger("transformers.tokenization_utils_base").addFilter(cuts_no_prompt)


def cuts_no_prompt(record: logging.LogRecord) -> bool:
    """Whether a tokenizer says something else than that a prompt is cut, which the chain counts."""
    return "sequence length is longer" not in str(record.msg)
