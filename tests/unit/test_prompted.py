"""Rows of latents and their prompts' conditions, read from a file that is mapped into memory."""

import gc
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from torch import nn

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


def test_a_batch_prepared_in_a_thread_leaves_the_steps_cast_weights_cached(tmp_path: Path) -> None:
    """Both calls of a layer in one step share one half-precision copy of its weight."""
    save_prompted(tmp_path / "rows", torch.randn(2, 4), torch.tensor([0, 0]), {}, "float16", {})
    file, layer, x = PromptedFile(tmp_path / "rows"), nn.Linear(4, 4, bias=False), torch.randn(3, 4)
    with torch.autocast("cpu", torch.bfloat16), ThreadPoolExecutor(1) as thread:
        first = layer(x)
        thread.submit(collate_rows, [file[0], file[1]], torch.device("cpu")).result()
        second = layer(x)

    def copies(output: torch.Tensor) -> set[object]:
        """Nodes of the autograd graph that cast to half precision."""
        nodes, casts = [output.grad_fn], set[object]()
        for node in nodes:
            if node is not None:
                nodes += [before for before, _ in node.next_functions]
                casts |= {node} if "Copy" in node.name() else set()
        return casts

    assert len(copies(first)) == 1 and copies(first) == copies(second)


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
