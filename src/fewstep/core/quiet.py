"""Silences libraries, so that stages and commands print only their own lines."""

import logging
import os
import sys
import warnings
from functools import partial, partialmethod

from tqdm import tqdm  # type: ignore[import-untyped]

LEVELS = {
    # Pipelines warn of truncated prompts in every batch; the chain counts them once. Loading may still warn.
    "diffusers.pipelines": logging.ERROR,
    "diffusers.pipelines.pipeline_utils": logging.WARNING,
    "diffusers.pipelines.pipeline_loading_utils": logging.WARNING,
    # It warns of a missing GPU compiler on machines without a GPU.
    "torch.utils.cpp_extension": logging.ERROR,
}
"""Logger -> lowest level that it prints."""
NOISE = {
    "transformers.tokenization_utils_base": "sequence length is longer",  # the chain counts truncated prompts
    "diffusers.models.modeling_utils": "should be kept in float32",
    "diffusers.pipelines.pipeline_utils": "cannot be saved",  # parts that are None
    "diffusers.loaders.single_file_utils": "only the non-EMA weights are extracted",  # the import reports it
}
"""Logger -> phrase of a warning that it prints although nothing is wrong."""


BEGAN_IN: dict[str, str] = {}
"""Environment variables before `quiet` was called, for processes that are to start as this one did."""


def quiet() -> None:
    """Turn off what libraries print, whether they are imported already or not; call it once, at the start.

    Progress bars: all that do not set `disable` themselves. Downloads set it, and show theirs on a terminal.
    Warnings: deprecations, which concern developers only. Telemetry: that of libraries which send any.
    """
    BEGAN_IN.update(os.environ)
    for name in ("DO_NOT_TRACK", "HF_HUB_DISABLE_TELEMETRY"):
        os.environ.setdefault(name, "1")
    if constants := sys.modules.get("huggingface_hub.constants"):
        constants.HF_HUB_DISABLE_TELEMETRY = True  # type: ignore[attr-defined]
    # tqdm reads TQDM_DISABLE at import, which may have happened already, so its default is changed too.
    os.environ.setdefault("TQDM_DISABLE", "1")
    tqdm.__init__ = partialmethod(tqdm.__init__, disable=True)
    if not sys.warnoptions:
        for kind in (DeprecationWarning, PendingDeprecationWarning, FutureWarning):
            warnings.simplefilter("ignore", kind)
    for name, level in LEVELS.items():
        logging.getLogger(name).setLevel(level)
    for name, phrase in NOISE.items():
        logging.getLogger(name).addFilter(partial(lacks, phrase))


def lacks(phrase: str, record: logging.LogRecord) -> bool:
    """Whether a log record does not contain the phrase."""
    return phrase not in str(record.msg)
