"""Rows of latents and their prompts' conditions, read from a file that is mapped into memory."""

import gc
import sys
from pathlib import Path

import pytest
import torch

from fewstep.data.prompted import PromptedFile, collate_rows, save_prompted
from tests.peak import status

ROWS = 12


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_rows_are_what_was_saved(tmp_path: Path, dtype: str) -> None:
    latents = torch.randn(ROWS, 4, 2, 2)
    text, scale = torch.randn(5, 7, 3), torch.rand(ROWS)
    prompt = torch.randint(0, 5, (ROWS,))
    save_prompted(tmp_path / "rows", latents, prompt, {"text": text}, dtype, {"scale": scale})
    file = PromptedFile(tmp_path / "rows")
    chosen = [7, 0, 11, 7]
    stored = getattr(torch, dtype)
    assert file[7].latent.dtype == file[7].condition["text"].dtype == stored
    with torch.autocast("cpu", torch.bfloat16):  # an evaluation during a training
        x_0, conditions = collate_rows([file[row] for row in chosen], torch.device("cpu"))
    assert {x_0.dtype, *(value.dtype for value in conditions.values())} == {torch.float32}
    assert torch.equal(x_0, latents[chosen].to(stored).float())
    assert torch.equal(conditions["text"], text[prompt[chosen]].to(stored).float())
    assert torch.equal(conditions["scale"], scale[chosen].to(stored).float())


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc/self/status")
def test_a_shard_takes_no_memory_of_its_own(tmp_path: Path) -> None:
    rows, size = 64, 2**20
    prompts = torch.arange(rows)
    save_prompted(
        tmp_path / "rows", torch.zeros(rows, size), prompts, {"text": torch.ones(rows, size)}, "float16", {}
    )
    gc.collect()
    before = status("RssAnon")
    file = PromptedFile(tmp_path / "rows")
    for row in range(rows):
        x_0, conditions = collate_rows([file[row]], torch.device("cpu"))
        assert float(x_0.sum()) == 0 and float(conditions["text"].mean()) == 1
    assert (tmp_path / "rows").stat().st_size > 256e6
    assert status("RssAnon") - before < 32e6
